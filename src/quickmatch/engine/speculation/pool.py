"""All drafted tokens of a step in one line, the likeliest first, and how many of them pay.

Owns the choice of the number of tokens by expected tokens a second at each step of the cost
staircase, the merging of a sequence's trees and the order of nodes in what is verified: depth
first along the likeliest child, so that the likeliest path comes first and its KV may stay where
it is. It does not know where probabilities and costs come from.

The twin of src/native/speculation/pool.hpp.

Invariant: a node's probability is below its parent's, so any beginning of the line is a tree for
each sequence.

Θ: expected tokens over the seconds that the step takes.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from quickmatch.engine.speculation.costs import StepCosts
from quickmatch.engine.speculation.tree import DraftTree, TreeColumns

_GOOD_ENOUGH = 0.995  # the fewest nodes that reach so much of the best are taken


@dataclass(slots=True)
class Choice:
    """A number of nodes from the pool's beginning."""

    num_nodes: int
    num_expected: float  # tokens that the step emits, bonus tokens included
    target_s: float  # of the target's rows
    tokens_per_s: float  # expected, all that the step takes included

    def price(self, plain_s: float) -> float:
        """Return the tokens that could be had in the time that a node's verification takes."""
        tokens_per_s = self.num_expected / self.target_s
        return max(0.0, self.target_s - plain_s) / self.num_nodes * tokens_per_s


class Pool:
    """The nodes of one tree a sequence, ordered by the probability that they are accepted."""

    def __init__(self, probabilities: Sequence[list[float]], floor: float) -> None:
        flat: list[float] = []
        self._starts = list(accumulate(map(len, probabilities), initial=0))
        for values in probabilities:
            flat += values
        likely = [i for i, p in enumerate(flat) if p > floor]
        likely.sort(key=flat.__getitem__, reverse=True)
        self._order = likely
        self.sums = list(accumulate([flat[i] for i in likely]))  # tokens expected of the first n

    def __len__(self) -> int:
        return len(self._order)

    def gain(self, num_nodes: int) -> float:
        """Return the tokens expected of the first num_nodes."""
        return self.sums[num_nodes - 1] if num_nodes else 0.0

    def best(self, costs: StepCosts, num_seqs: int, max_nodes: int) -> Choice | None:
        """Return the number of nodes with the most tokens a second; None if there is none.

        Only whole buckets of rows: a number of rows that never ran before costs the machine
        several steps' time, to make kernels for it; so the numbers in use are few.
        """
        most = min(len(self._order), max_nodes)
        sums = self.sums
        choices: list[Choice] = []
        for num_rows, seconds in costs.stairs:
            num_nodes = num_rows - num_seqs
            if num_nodes > most:
                break
            target_s, num_expected = seconds * costs.factor, num_seqs + sums[num_nodes - 1]
            tokens_per_s = num_expected / (target_s + costs.extra_s)
            choices.append(Choice(num_nodes, num_expected, target_s, tokens_per_s))
        if not choices:
            return None
        enough = _GOOD_ENOUGH * max(choice.tokens_per_s for choice in choices)
        return next(choice for choice in choices if choice.tokens_per_s >= enough)

    def split(self, num_nodes: int) -> list[list[int]]:
        """Return for each sequence its nodes among the first num_nodes, the likeliest first."""
        starts = self._starts
        out: list[list[int]] = [[] for _ in range(len(starts) - 1)]
        for index in self._order[:num_nodes]:
            owner = bisect_right(starts, index) - 1
            out[owner].append(index - starts[owner])
        return out


def in_line(tree: DraftTree, nodes: list[int]) -> list[int]:
    """Return the nodes, given likeliest first, depth first along the likeliest child."""
    parents = tree.parents
    if [parents[node] for node in nodes] == [-1, *nodes[:-1]]:
        return nodes
    children: dict[int, list[int]] = {}
    for node in nodes:
        children.setdefault(parents[node], []).append(node)
    out: list[int] = []
    waiting = children[-1][::-1]
    while waiting:
        node = waiting.pop()
        out.append(node)
        if node in children:
            waiting += children[node][::-1]
    return out


def cut(tree: DraftTree, nodes: list[int]) -> TreeColumns:
    """Return the tree of these nodes in this order; the same as `keep`, quicker."""
    place = {node: index for index, node in enumerate(nodes)}
    place[-1] = -1
    parents, tokens = tree.parents, tree.token_ids
    confidences, sources, features = tree.confidences, tree.sources, tree.features
    return (
        [tokens[n] for n in nodes],
        [place[parents[n]] for n in nodes],
        [confidences[n] for n in nodes],
        [sources[n] for n in nodes],
        [features[n] for n in nodes],
    )
