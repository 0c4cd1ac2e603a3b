"""Several drafts of one sequence as one tree: the same token after the same path is one node.

The node keeps the record (source, confidence, feature) of whoever is believed more; the other's is
handed out as a twin, so that it is judged by the same verification. Knows no sequence and no cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quickmatch.engine.speculation.tree import DraftTree, Source


@dataclass(slots=True)
class Twin:
    """A second source's record of a node."""

    node: int
    source: Source
    feature: int
    confidence: float


@dataclass(slots=True)
class Merged:
    """A tree, each node's path probability, and the records that lost their place to others'."""

    tree: DraftTree
    probabilities: list[float]
    twins: list[Twin]


def merge(trees: Sequence[DraftTree], probabilities: Sequence[list[float]]) -> Merged:
    """Merge trees of one sequence; probabilities: each node's path probability, by tree."""
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
                if chance > chances[place]:
                    record = _exchange(merged, place, *record)
                    chances[place] = chance
                twins.append(Twin(place, *record))
            places.append(place)
    out: list[float] = []
    for parent, chance in zip(merged.parents, chances, strict=True):
        out.append(chance if parent < 0 else chance * out[parent])
    return Merged(merged, out, twins)


def _exchange(
    tree: DraftTree, node: int, source: Source, feature: int, confidence: float
) -> tuple[Source, int, float]:
    old = tree.sources[node], tree.features[node], tree.confidences[node]
    tree.sources[node], tree.features[node], tree.confidences[node] = source, feature, confidence
    return old
