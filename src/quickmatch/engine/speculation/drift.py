"""Notices that drafts have become worse than calibration foretells.

Owns one Page-Hinkley test a source and scope (tenant and weights): it sums how much less was
accepted than foretold, beyond a tolerance, and raises when the sum climbs too far above its
lowest. Calibration follows slow changes by itself, so only a sudden one gets that far. It does not
know what is done about a drift.

Source: Page 1954, Hinkley 1971; on the calibration residual: SPECULATION.md §7.
"""

from collections import OrderedDict

from quickmatch.engine.speculation.tree import Source

_TOLERANCE = 0.1  # of acceptance
_THRESHOLD = 10.0  # tokens: some 17 failures where 70 % were foretold; a false alarm in 2e5 tokens
_MAX_SCOPES = 1024


class PageHinkley:
    """Tells when the mean of a sequence of numbers has risen above zero."""

    __slots__ = ("_lowest", "_sum", "_threshold", "_tolerance")

    def __init__(self, tolerance: float = _TOLERANCE, threshold: float = _THRESHOLD) -> None:
        self._tolerance, self._threshold = tolerance, threshold
        self._sum = self._lowest = 0.0

    def add(self, value: float) -> bool:
        """Take one number in; return whether it gives the alarm, after which the test restarts."""
        self._sum += value - self._tolerance
        if self._sum < self._lowest:
            self._lowest = self._sum
        if self._sum - self._lowest <= self._threshold:
            return False
        self._sum = self._lowest = 0.0
        return True


class DriftWatch:
    """The tests of all sources and scopes. `num_drifts`: alarms by scope and source, ever."""

    def __init__(self) -> None:
        self.num_drifts = 0
        self._tests: OrderedDict[tuple[str, Source], PageHinkley] = OrderedDict()

    def add(self, scope: str, source: Source, shortfall: float) -> bool:
        """Take in foretold minus accepted of one token; return whether the source has drifted."""
        test = self._tests.get((scope, source))
        if test is None:
            test = self._tests[scope, source] = PageHinkley()
            if len(self._tests) > _MAX_SCOPES:
                self._tests.popitem(last=False)
        if not test.add(shortfall):
            return False
        self.num_drifts += 1
        return True
