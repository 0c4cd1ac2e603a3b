"""All drafts of one step, one merged tree a sequence, with calibrated path probabilities.

Owns the way from the drafters' trees to those that are verified. It does not decide how many nodes
are worth it: it hands out the pool, and cuts the trees to what was chosen of it.
"""

from collections.abc import Sequence
from functools import cached_property

from quickmatch.engine.speculation.costs import CostTable
from quickmatch.engine.speculation.merging import Merged
from quickmatch.engine.speculation.model_use import Outlook
from quickmatch.engine.speculation.pool import Pool, cut, in_line
from quickmatch.engine.speculation.request_state import RequestState
from quickmatch.engine.speculation.tree import MODEL_SOURCES, DraftTree


class StepDrafts:
    """Drafts by sequence, in the order of the step's decoding sequences."""

    def __init__(self, merged: list[Merged], floor: float) -> None:
        self.merged = merged
        self._floor = floor
        self._paths = [one.probabilities for one in merged]

    @cached_property
    def pool(self) -> Pool:
        """All nodes above the floor, the likeliest first."""
        return Pool(self._paths, self._floor)

    def outlook(self, costs: CostTable, extra_s: float) -> Outlook:
        """Return what the step gives at best with these drafts and no others."""
        num_seqs = len(self.merged)
        plain_s = costs.plain_s(num_seqs) + extra_s
        outlook = Outlook(
            num_seqs / plain_s, [0.0] * num_seqs, [0] * num_seqs, extra_s, self.pool.sums
        )
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

    def num_worth(self, costs: CostTable, *, max_nodes: int, extra_s: float, margin: float) -> int:
        """Return how many nodes give the most tokens a second; 0: none do, beside plain decoding.

        extra_s: seconds of this step beside the target's rows. margin: what they must win by.
        """
        num_seqs = len(self.merged)
        best = self.pool.best(costs, num_seqs, max_nodes=max_nodes, extra_s=extra_s)
        if best is None:
            return 0
        plain = num_seqs / (costs.plain_s(num_seqs) + extra_s)
        return best.num_nodes if best.tokens_per_s > margin * plain else 0

    def price(self, costs: CostTable, num_nodes: int) -> float:
        """Return the tokens that could be had in the time that a node's verification takes."""
        if num_nodes == 0:
            return 0.0
        num_seqs = len(self.merged)
        seconds = costs.step_s(num_seqs, num_seqs + num_nodes)
        tokens_per_s = (num_seqs + self.pool.gain(num_nodes)) / seconds
        return max(0.0, seconds - costs.plain_s(num_seqs)) / num_nodes * tokens_per_s

    def take(
        self,
        chosen: list[list[int]],
        states: Sequence[RequestState],
        *,
        max_nodes: int,
        price: float,
        least_gain: float,
    ) -> list[DraftTree | None]:
        """Return the trees of the chosen nodes, at most max_nodes a sequence.

        chosen: by sequence, the likeliest first. price: of a node's verification, in tokens.
        least_gain: accepted tokens, beyond the price, to be expected before a cheap draft was
        worth asking for.
        """
        out: list[DraftTree | None] = []
        for one, nodes, state in zip(self.merged, chosen, states, strict=True):
            if not nodes:
                out.append(None)
                continue
            if _cheap_gain(one, nodes, price) > least_gain:
                state.helped()
            nodes = nodes[:max_nodes]
            out.append(cut(one.tree, nodes if one.is_chain else in_line(one.tree, nodes)))
        return out


def _cheap_gain(one: Merged, nodes: list[int], price: float) -> float:
    """Accepted tokens to be expected, beyond the price, of nodes that no model has proposed."""
    paths, sources = one.probabilities, one.tree.sources
    if not one.twins and sources[-1] not in MODEL_SOURCES:  # a model's nodes come last
        return sum([paths[node] for node in nodes]) - price * len(nodes)
    twins = [twin.node for twin in one.twins]
    return sum(
        [
            paths[node] - price
            for node in nodes
            if paths[node] > price and sources[node] not in MODEL_SOURCES and node not in twins
        ]
    )
