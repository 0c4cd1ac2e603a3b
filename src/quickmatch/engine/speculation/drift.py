"""Notices that drafts have become worse, or better, than calibration foretells.

Owns Page-Hinkley tests by source and scope (tenant and weights): one sums how much less was
accepted than foretold, beyond a tolerance, and raises when the sum climbs too far above its
lowest; one sums how much more. Calibration follows slow changes by itself, so only a sudden one
gets that far. It does not know what is done about a drift.

Source: Page 1954, Hinkley 1971; on the calibration residual: SPECULATION.md §7.
"""

from collections import OrderedDict

from quickmatch.engine.speculation.tree import Source

_FALL = (0.1, 10.0)  # some 17 failures where 70 % were foretold; a false alarm in 2e5 tokens
_RISE = (0.15, 5.0)  # some 7 successes where few were foretold; a false one costs little
_TELLING = 0.25  # foretold; tokens below it say nothing of a fall
_MAX_SCOPES = 1024


class PageHinkley:
    """Tells when the mean of a sequence of numbers has risen above zero."""

    __slots__ = ("_lowest", "_sum", "_threshold", "_tolerance")

    def __init__(self, tolerance: float, threshold: float) -> None:
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
    """The tests of all sources and scopes. `num_drifts`: falls, ever."""

    def __init__(self) -> None:
        self.num_drifts = 0
        self._falls: OrderedDict[tuple[str, Source], PageHinkley] = OrderedDict()
        self._rises = [PageHinkley(*_RISE) for _ in Source]

    def add(self, scope: str, source: Source, foretold: float, accepted: bool) -> bool:
        """Take in one verified token; return whether its source has drifted, either way."""
        shortfall = foretold - accepted
        if foretold > _TELLING and self._fall_of(scope, source).add(shortfall):
            self.num_drifts += 1
            return True
        return self._rises[source].add(-shortfall)

    def _fall_of(self, scope: str, source: Source) -> PageHinkley:
        test = self._falls.get((scope, source))
        if test is None:
            test = self._falls[scope, source] = PageHinkley(*_FALL)
            if len(self._falls) > _MAX_SCOPES:
                self._falls.popitem(last=False)
        return test
