"""All drafts of one step, one merged tree a sequence, with calibrated path probabilities.

Owns the way from the merged trees to those that are verified: how many nodes are worth it at the
step's costs, and the trees cut to them. It does not know where probabilities and costs come from.

The twin of this part of src/native/speculation/assessor.hpp.
"""

from collections.abc import Sequence

from quickmatch.engine.speculation.costs import StepCosts
from quickmatch.engine.speculation.in_order import in_order
from quickmatch.engine.speculation.merging import Merged
from quickmatch.engine.speculation.pool import Pool, cut, in_line
from quickmatch.engine.speculation.request_state import RequestState
from quickmatch.engine.speculation.tree import MODEL_SOURCES, TreeColumns


class StepDrafts:
    """Drafts by sequence, in the order of the step's decoding sequences."""

    def __init__(
        self, states: Sequence[RequestState], merged: Sequence[Merged], floor: float
    ) -> None:
        self.states = states
        self.merged = merged
        self.pool = Pool([one.probabilities for one in merged], floor)

    def outlook(self, costs: StepCosts) -> tuple[float, list[float], list[int]]:
        """Return what the step gives at best with these drafts and no others.

        That is tokens a second, and by sequence the expected accepted tokens and their nodes.
        """
        num_seqs = len(self.merged)
        tokens_per_s = self._rate_of_plain(costs)
        best = self.pool.best(costs, num_seqs, len(self.pool))
        if best is None or best.tokens_per_s <= tokens_per_s:
            return tokens_per_s, [0.0] * num_seqs, [0] * num_seqs
        chosen = self.pool.split(best.num_nodes)
        gains = [
            in_order(one.probabilities[n] for n in nodes)
            for one, nodes in zip(self.merged, chosen, strict=True)
        ]
        return best.tokens_per_s, gains, [len(nodes) for nodes in chosen]

    def choose(
        self, costs: StepCosts, margin: float, max_rows: int, max_nodes: int, least_gain: float
    ) -> tuple[int, list[TreeColumns | None]]:
        """Return how many nodes give the most tokens a second, and the trees that they make.

        0: none do, beside plain decoding, by the factor `margin`.
        """
        best = self.pool.best(costs, len(self.merged), max_rows)
        if best is None or best.tokens_per_s <= margin * self._rate_of_plain(costs):
            return 0, [None] * len(self.merged)
        price, chosen = best.price(costs.plain_s), self.pool.split(best.num_nodes)
        for state, one, nodes in zip(self.states, self.merged, chosen, strict=True):
            if nodes and _cheap_gain(one, nodes, price) > least_gain:
                state.helped()
        return best.num_nodes, self._cut(chosen, max_nodes)

    def take(self, num_nodes: int, max_nodes: int) -> list[TreeColumns | None]:
        """Return the trees of the first num_nodes of the pool, at most max_nodes a sequence."""
        return self._cut(self.pool.split(num_nodes), max_nodes)

    def _cut(self, split: list[list[int]], max_nodes: int) -> list[TreeColumns | None]:
        out: list[TreeColumns | None] = []
        for one, chosen in zip(self.merged, split, strict=True):
            nodes = chosen[:max_nodes]
            if nodes and not one.is_chain:
                nodes = in_line(one.tree, nodes)
            out.append(cut(one.tree, nodes) if nodes else None)
        return out

    def _rate_of_plain(self, costs: StepCosts) -> float:
        return len(self.merged) / (costs.plain_s + costs.extra_s)


def _cheap_gain(one: Merged, nodes: list[int], price: float) -> float:
    """Accepted tokens to be expected, beyond the price, of nodes that no model has proposed."""
    paths, sources = one.probabilities, one.tree.sources
    if not one.twins and not any(source in MODEL_SOURCES for source in sources):
        return in_order(paths[node] for node in nodes) - price * len(nodes)
    twins = [twin.node for twin in one.twins]
    return in_order(
        paths[node] - price
        for node in nodes
        if paths[node] > price and sources[node] not in MODEL_SOURCES and node not in twins
    )
