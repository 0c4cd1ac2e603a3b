"""What a model drafter's trees promise: expected accepted tokens of each level.

By calibrated probability, not by what was accepted, so it depends neither on luck nor on what was
pruned. Owns a curve over depth for each width; it does not know who drafts, or what for.

The twin of src/native/speculation/promise.hpp.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from quickmatch.engine.speculation.in_order import in_order
from quickmatch.engine.speculation.tree import MODEL_SOURCES, DraftTree, depths_of

_FIRST = 0.7  # acceptance of the first token, before any is seen
_PRIOR = 1.0  # trees
_KEPT = 1 - 1 / 64  # of what was seen, from tree to tree
_SOFTENED = 0.05
_MISSES_LEFT = {2: 0.75, 4: 0.6}  # of the misses of one candidate, before any is seen
WIDTHS = (1, *_MISSES_LEFT)


class Promise:
    """Expected accepted tokens of each level of trees of one width.

    narrow: the promise of width 1, by which one of a width that is hardly known is guessed.
    """

    def __init__(self, max_depth: int, misses_left: float, narrow: "Promise | None") -> None:
        self._above = [0.0] * max_depth  # mass of the level before, in trees that have this one
        self._mass = [0.0] * max_depth
        self._misses_left = misses_left
        self._narrow = narrow

    def add(self, levels: Sequence[float], depth: int) -> None:
        """Take in a tree that was to have so many levels.

        Where it stopped before, the next would have brought nothing; deeper levels fade too: what
        was seen there is old.
        """
        self._above = [value * _KEPT for value in self._above]
        self._mass = [value * _KEPT for value in self._mass]
        above = 1.0
        for d, mass in enumerate(levels[: len(self._mass)]):
            self._above[d] += above
            self._mass[d] += mass
            above = mass
        if len(levels) < min(depth, len(self._mass)):
            self._above[len(levels)] += above

    def soften(self) -> None:
        """Keep what is promised, but let the next trees count much more."""
        self._above = [value * _SOFTENED for value in self._above]
        self._mass = [value * _SOFTENED for value in self._mass]

    def shares(self) -> list[float]:
        """Return each level's share of the one before, shrunk to the share before that."""
        narrow = self._narrow.shares() if self._narrow is not None else None
        share, shares = _FIRST, []
        for d, (above, mass) in enumerate(zip(self._above, self._mass, strict=True)):
            if narrow is not None:
                share = 1.0 - (1.0 - narrow[d]) * self._misses_left
            share = min((mass + _PRIOR * share) / (above + _PRIOR), 0.99)
            shares.append(share)
        return shares

    def totals(self) -> list[float]:
        """Return, at [depth - 1], the expected accepted tokens of all levels down to depth."""
        return list(accumulate(accumulate(self.shares(), mul)))


class Promises:
    """Those of all widths."""

    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self.renew()

    def renew(self) -> None:
        """Forget what was promised: it is another drafter now."""
        narrow = Promise(self._max_depth, 1.0, None)
        self._by_width = {w: Promise(self._max_depth, m, narrow) for w, m in _MISSES_LEFT.items()}
        self._by_width[1] = narrow
        self._totals = {width: promise.totals() for width, promise in self._by_width.items()}
        self._behind = self._num_trees = 0.0

    def look(self, width: int) -> list[float]:
        """Return, at [depth - 1], the expected accepted tokens of all levels down to depth.

        What is usual for trees of a width stays what it was when it was looked at.
        """
        self._totals[width] = self._by_width[width].totals()
        return self._totals[width]

    def soften(self) -> None:
        """Doubt the promises: calibration has found a drift."""
        for promise in self._by_width.values():
            promise.soften()
        self._behind *= _SOFTENED
        self._num_trees *= _SOFTENED

    @property
    def behind(self) -> float:
        """Accepted tokens expected behind a tree: of what others drafted where it ends."""
        return self._behind / (self._num_trees + _PRIOR)

    def add(
        self, width: int, depth: int, tree: DraftTree, paths: Sequence[float]
    ) -> tuple[float, float]:
        """Take in a drafted tree; return the accepted tokens it promises, and what is usual.

        Of a model's nodes alone, which come first; what others went on with is `behind`. depth:
        levels that were asked for. paths: the path probability of each node.
        """
        num_own = sum(source in MODEL_SOURCES for source in tree.sources)
        self._behind = self._behind * _KEPT
        self._num_trees = self._num_trees * _KEPT + 1.0
        for path in paths[num_own:]:
            self._behind += path
        levels, best_path = levels_of(tree.parents[:num_own], paths[:num_own])
        totals = self._totals[width]
        usual = totals[min(len(levels), len(totals)) - 1]
        self._by_width[width].add(levels, depth)
        if width > 1:
            self._by_width[1].add(best_path, depth)
        return in_order(levels), usual


def levels_of(parents: Sequence[int], paths: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the expected accepted tokens of each level of a tree, and of its likeliest path."""
    if all(parent == node - 1 for node, parent in enumerate(parents)):
        return list(paths), list(paths)
    depths = depths_of(parents)
    levels = [0.0] * max(depths)
    best_path = levels.copy()
    ends = [-1] + [0] * len(levels)  # the likeliest path's node at each depth
    for node, (depth, probability) in enumerate(zip(depths, paths, strict=True)):
        levels[depth - 1] += probability
        if probability > best_path[depth - 1] and parents[node] == ends[depth - 1]:
            best_path[depth - 1], ends[depth] = probability, node
    return levels, best_path
