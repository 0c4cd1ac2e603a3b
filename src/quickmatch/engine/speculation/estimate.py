"""A running estimate of a duration on a machine that others use too.

Each new value goes through the lower median of the last three and a clip before it moves the
estimate, so that a single slow step moves nothing; a lasting change passes after two. The more
has been seen, the slower it moves; what has not been seen for long moves faster again.
"""

from math import exp, log

_LONGEST_MEMORY = 32  # observations
_YOUNG = 3  # observations that are taken as they are, so that a slow first one is soon forgotten
_MAX_MOVE = 0.5  # in log: what one observation may differ from the estimate
_STALE = 64  # observations of anything after which this one's memory is short
_SHORTEST_MEMORY = 4


class Estimate:
    """A positive number, kept as its logarithm."""

    __slots__ = ("_recent", "_seen", "count", "log_value")

    def __init__(self) -> None:
        self.count = 0
        self.log_value = 0.0
        self._recent: list[float] = []
        self._seen = 0

    @property
    def value(self) -> float:
        """The estimate; 1.0 before anything was seen."""
        return exp(self.log_value)

    def add(self, value: float, *, pace: float = 0.0, now: int = 0) -> float:
        """Take one observation in; return by how much it surprised, in log, filtered.

        pace: log of a factor that `value` contains and the estimate does not. now: a count of
        observations of anything, by which the estimate's age is told.
        """
        recent = self._recent
        recent.append(log(max(value, 1e-9)) - pace)
        if len(recent) > 3:
            del recent[0]
        self.count += 1
        age, self._seen = now - self._seen, now
        middle = sorted(recent)[(len(recent) - 1) // 2]
        if self.count <= _YOUNG:
            self.log_value = middle
            return 0.0
        surprise = min(max(middle - self.log_value, -_MAX_MOVE), _MAX_MOVE)
        rate = 1.0 / min(self.count, _LONGEST_MEMORY)
        if age > _LONGEST_MEMORY:
            rate = max(rate, min(age / _STALE, 1.0) / _SHORTEST_MEMORY)
        self.log_value += rate * surprise
        return surprise
