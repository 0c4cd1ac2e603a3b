"""Several drafts of one sequence as one tree: the same token after the same path is one node.

The node keeps the record (source, confidence, feature) of whoever is believed more; the other's is
handed out as a twin, so that it is judged by the same verification. That two drafters agree is
evidence of its own, calibrated like a drafter whose raw confidence is that of two independent
guesses. Where they do not agree, one at most is right: siblings share one probability.

Knows no sequence and no cost. The twin of src/native/speculation/merging.hpp.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quickmatch.engine.speculation.tree import MODEL_SOURCES, DraftTree


@dataclass(slots=True)
class Twin:
    """A second source's record of a node."""

    node: int
    source: int
    feature: int
    confidence: float
    together: float  # P(right) if the two guesses were independent


@dataclass(slots=True)
class Merged:
    """A tree, each node's path probability, and the records that lost their place to others'."""

    tree: DraftTree
    probabilities: list[float]  # of a chain only the first, where the rest is too unlikely
    twins: list[Twin]
    is_chain: bool = False  # and of one source; may be False of such a one too

    def begins_with(self, token_id: int, *, of_model: bool = False) -> bool:
        """Return whether a first node holds this token; of_model: one that a model proposed."""
        tree = self.tree
        for node, (parent, token) in enumerate(zip(tree.parents, tree.token_ids, strict=True)):
            if parent < 0 and token == token_id:
                if not of_model or tree.sources[node] in MODEL_SOURCES:
                    return True
                return any(t.node == node and t.source in MODEL_SOURCES for t in self.twins)
        return False


NO_DRAFT = Merged(DraftTree(), [], [])


def merge(
    trees: Sequence[DraftTree],
    probabilities: Sequence[list[float]],
    agreement: Callable[[float], float],
) -> Merged:
    """Merge trees of one sequence.

    probabilities: each node's path probability, by tree. agreement: how often a token on which
    two drafters agree is right, by what independent guesses would give.
    """
    merged = DraftTree()
    chances: list[float] = []  # each node's probability given its parent
    found: dict[tuple[int, int], int] = {}
    twins: list[Twin] = []
    for tree, paths in zip(trees, probabilities, strict=True):
        places: list[int] = []
        for node, (token_id, parent) in enumerate(zip(tree.token_ids, tree.parents, strict=True)):
            chance = paths[node] if parent < 0 else paths[node] / paths[parent]
            record = tree.sources[node], tree.features[node], tree.confidences[node]
            above = -1 if parent < 0 else places[parent]
            place = found.get((above, token_id))
            if place is None:
                place = merged.add(token_id, above, record[2], record[0], record[1])
                found[above, token_id] = place
                chances.append(chance)
            else:
                together = 1.0 - (1.0 - chance) * (1.0 - chances[place])
                if chance > chances[place]:
                    record = _exchange(merged, place, *record)
                chances[place] = max(chance, chances[place], agreement(together))
                twins.append(Twin(place, *record, together))
            places.append(place)
    _share(merged, chances)
    out: list[float] = []
    for parent, chance in zip(merged.parents, chances, strict=True):
        out.append(chance if parent < 0 else chance * out[parent])
    return Merged(merged, out, twins)


def _exchange(
    tree: DraftTree, node: int, source: int, feature: int, confidence: float
) -> tuple[int, int, float]:
    old = tree.sources[node], tree.features[node], tree.confidences[node]
    tree.sources[node], tree.features[node], tree.confidences[node] = source, feature, confidence
    return old


def _share(tree: DraftTree, chances: list[float]) -> None:
    """Leave to each node what its likelier siblings leave of a probability of 1."""
    taken: dict[int, float] = {}
    for node in sorted(range(len(tree)), key=chances.__getitem__, reverse=True):
        parent = tree.parents[node]
        left = 1.0 - taken.get(parent, 0.0)
        chances[node] = max(min(chances[node], left), 1e-6)
        taken[parent] = 1.0 - left + chances[node]
