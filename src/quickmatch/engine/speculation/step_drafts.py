"""All drafts of one step, one merged tree a sequence, with calibrated path probabilities.

Owns the way from the drafters' trees to those that are verified. It does not decide how many nodes
are worth it: it hands out the pool, and cuts the trees to what was chosen of it.
"""

from collections.abc import Sequence

from quickmatch.engine.speculation.costs import CostTable
from quickmatch.engine.speculation.merging import Merged, Twin, merge
from quickmatch.engine.speculation.model_use import Outlook
from quickmatch.engine.speculation.pool import Pool, cut, in_line
from quickmatch.engine.speculation.request_state import RequestState
from quickmatch.engine.speculation.tree import DraftTree, Source

MODEL_SOURCES = (Source.HEAD, Source.DRAFT_MODEL)
_NO_DRAFT = Merged(DraftTree(), [], [])


def merge_drafts(drafts: Sequence[DraftTree], paths: Sequence[list[float]]) -> Merged:
    """Return one sequence's non-empty drafts as one tree; paths: their path probabilities."""
    if not drafts:
        return _NO_DRAFT
    return Merged(drafts[0], paths[0], []) if len(drafts) == 1 else merge(drafts, paths)


class StepDrafts:
    """Drafts by sequence, in the order of the step's decoding sequences."""

    def __init__(self, merged: list[Merged], floor: float) -> None:
        self.merged = merged
        self._paths = [one.probabilities for one in merged]
        self.pool = Pool(self._paths, floor)

    def outlook(self, costs: CostTable, extra_s: float) -> Outlook:
        """Return what the step gives at best with these drafts and no others."""
        num_seqs = len(self.merged)
        plain_s = costs.plain_s(num_seqs) + extra_s
        outlook = Outlook(num_seqs / plain_s, [0.0] * num_seqs, [0] * num_seqs, extra_s)
        best = self.pool.best(costs, num_seqs, max_nodes=len(self.pool), extra_s=extra_s)
        if best is not None and best.tokens_per_s > outlook.tokens_per_s:
            chosen = self.pool.split(best.num_nodes)
            outlook.tokens_per_s = best.tokens_per_s
            outlook.nodes = [len(nodes) for nodes in chosen]
            outlook.gains = [
                sum([paths[n] for n in nodes])
                for paths, nodes in zip(self._paths, chosen, strict=True)
            ]
        return outlook

    def take(
        self, num_nodes: int, max_nodes: int, states: Sequence[RequestState], min_gain: float
    ) -> list[DraftTree | None]:
        """Return the trees of the first num_nodes of the pool, at most max_nodes a sequence.

        min_gain: accepted tokens to be expected before a cheap draft was worth asking for.
        """
        out: list[DraftTree | None] = []
        for one, nodes, state in zip(self.merged, self.pool.split(num_nodes), states, strict=True):
            if not nodes:
                out.append(None)
                continue
            tree = _cut(one, nodes[:max_nodes], state)
            gain = sum([one.probabilities[node] for node in nodes])
            if gain > min_gain and (one.twins or tree.sources[0] not in MODEL_SOURCES):
                state.helped()
            out.append(tree)
        return out

    def likeliest(self, places: Sequence[int]) -> int | None:
        """Return which of these sequences has the likeliest first token; None if none has any."""
        drafted = [(self._paths[i][0], i) for i in places if self._paths[i]]
        return max(drafted)[1] if drafted else None

    def take_beginning(self, place: int, num_nodes: int, state: RequestState) -> DraftTree:
        """Return the first nodes of one sequence's tree, whatever they are worth."""
        one = self.merged[place]
        return _cut(one, list(range(min(num_nodes, len(one.tree)))), state)


def _cut(one: Merged, nodes: list[int], state: RequestState) -> DraftTree:
    nodes = in_line(one.tree, nodes)
    if one.twins:
        place = {node: index for index, node in enumerate(nodes)}
        state.twins = [
            Twin(place[twin.node], twin.source, twin.feature, twin.confidence)
            for twin in one.twins
            if twin.node in place
        ]
    return cut(one.tree, nodes)
