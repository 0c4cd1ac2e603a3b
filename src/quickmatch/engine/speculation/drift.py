"""Notices that drafts have become worse, or better, than before.

Owns two kinds of tests by source and scope (tenant and weights), which know nothing of what is
done about a drift:

- by token, on the calibration residual (foretold - right): quick, so that calibration may doubt
  what it knows. Calibration follows slow changes by itself; a request unlike others looks like a
  drift too, and doubting for its sake costs little.
- by request, on the acceptance over blocks of a request's tokens beside the mean of the last: slow
  and sure, because heads are trained anew for it. Requests differ; only many in a row that fall
  short are a drift of the traffic. `drifts` counts these.

The twin of src/native/speculation/drift.hpp.

Source: Page 1954, Hinkley 1971; here on the residual of calibration.
"""

from collections import OrderedDict

from quickmatch.engine.speculation.tree import Source

_FALL = (0.1, 10.0)  # tokens: some 17 failures where 70 % were foretold
_RISE = (0.15, 5.0)  # some 7 successes where few were foretold
_TELLING = 0.25  # foretold; tokens below it say nothing of a fall
_REQUESTS = (0.1, 4.0)  # some 8 blocks of half the usual acceptance
_MEMORY = 64  # blocks in the mean
_NUM_FIRST = 8  # blocks before a mean is one
_MAX_SCOPES = 1024


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

    __slots__ = ("_fall", "_mean", "_num_blocks", "_requests", "_rise")

    def __init__(self) -> None:
        self._fall = PageHinkley(*_FALL)
        self._rise = PageHinkley(*_RISE)
        self._requests = PageHinkley(*_REQUESTS)
        self._mean = 0.0
        self._num_blocks = 0

    def add_token(self, foretold: float, is_right: bool) -> bool:
        """Take in one judged token; return whether calibration is to doubt itself."""
        if foretold > _TELLING and self._fall.add(foretold - is_right):
            return True
        return self._rise.add(is_right - foretold)

    def add_block(self, acceptance: float) -> bool:
        """Take in a block of a request's tokens; return whether the traffic has drifted."""
        is_known = self._num_blocks >= _NUM_FIRST
        has_drifted = is_known and self._requests.add(self._mean - acceptance)
        self._num_blocks = 1 if has_drifted else min(self._num_blocks + 1, _MEMORY)
        self._mean += (acceptance - self._mean) / self._num_blocks
        return has_drifted


class DriftWatch:
    """The tests of all sources and scopes."""

    def __init__(self) -> None:
        self.drifts: dict[str, int] = {}  # of the traffic, ever, by scope; only where there were
        self._tests: OrderedDict[str, list[DriftTest]] = OrderedDict()  # by scope; by source

    def test(self, scope: str, source: int) -> DriftTest:
        """Return the test of a source in a scope. The oldest scopes are forgotten."""
        tests = self._tests.get(scope)
        if tests is None:
            tests = self._tests[scope] = [DriftTest() for _ in Source]
            if len(self._tests) > _MAX_SCOPES:
                self._tests.popitem(last=False)
        return tests[source]

    def add_block(self, scope: str, source: int, acceptance: float) -> None:
        """Take in the acceptance of a block of a request's tokens."""
        if self.test(scope, source).add_block(acceptance):
            self.drifts[scope] = self.drifts.get(scope, 0) + 1
