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
_MAX_TESTS = 4096


class PageHinkley:
    """Tells when the mean of a sequence of numbers has risen above zero."""

    __slots__ = ("_excess", "_threshold", "_tolerance")

    def __init__(self, tolerance: float, threshold: float) -> None:
        self._tolerance, self._threshold = tolerance, threshold
        self._excess = 0.0  # of the sum over its lowest so far

    def add(self, value: float) -> bool:
        """Take one number in; return whether it gives the alarm, after which the test restarts."""
        excess = self._excess + value - self._tolerance
        if excess > self._threshold:
            self._excess = 0.0
            return True
        self._excess = excess if excess > 0.0 else 0.0
        return False


class DriftTest:
    """The tests of one source in one scope."""

    __slots__ = ("_fall", "_rise", "num_falls")

    def __init__(self) -> None:
        self._fall = PageHinkley(*_FALL)
        self._rise = PageHinkley(*_RISE)
        self.num_falls = 0

    def add(self, foretold: float, is_right: bool) -> bool:
        """Take in one judged token; return whether its source has drifted, either way."""
        if foretold > _TELLING and self._fall.add(foretold - is_right):
            self.num_falls += 1
            return True
        return self._rise.add(is_right - foretold)


class DriftWatch:
    """The tests of all sources and scopes."""

    def __init__(self) -> None:
        self._tests: OrderedDict[tuple[str, Source], DriftTest] = OrderedDict()
        self._num_forgotten = 0

    @property
    def num_drifts(self) -> int:
        """Falls, ever."""
        return self._num_forgotten + sum(test.num_falls for test in self._tests.values())

    def test(self, scope: str, source: Source) -> DriftTest:
        """Return the test of a source in a scope. The oldest scopes are forgotten."""
        test = self._tests.get((scope, source))
        if test is None:
            test = self._tests[scope, source] = DriftTest()
            if len(self._tests) > _MAX_TESTS:
                _, oldest = self._tests.popitem(last=False)
                self._num_forgotten += oldest.num_falls
        return test
