"""Rates over windows of calls, from the counters of /metrics; and when a rate is back.

Owns the reading of Prometheus text, differences of counters, and the rule for "recovered". Knows
no server.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean

_PREFIX = "quickmatch_speculation_"


@dataclass(frozen=True, slots=True)
class Window:
    """Some calls in a row; `request` is the number of the last one, from the start."""

    request: int
    hit_rate: float  # accepted ÷ proposed; 0 where nothing was proposed
    accepted_length: float  # tokens a forward; 1 is plain decoding
    tokens_per_s: float  # at the client


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums since the server's start, under the names of its metrics without `_total`."""

    proposed_tokens: float = 0.0
    accepted_tokens: float = 0.0
    emitted_tokens: float = 0.0
    verifications: float = 0.0
    plain_decodes: float = 0.0

    @classmethod
    def read(cls, text: str) -> "Counters":
        """Sum the series of each counter over its labels, all deployments together."""
        sums = dict.fromkeys((f.name for f in fields(cls)), 0.0)
        for line in text.splitlines():
            if line.startswith(_PREFIX):
                name = line.removeprefix(_PREFIX).split("{", 1)[0].removesuffix("_total")
                if name in sums:
                    sums[name] += float(line.rsplit(" ", 1)[1])
        return cls(**sums)

    def since(self, before: "Counters") -> "Counters":
        """Return the growth."""
        return Counters(
            **{f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)}
        )

    def window(self, request: int, tokens_per_s: float) -> Window:
        """Return these counts as rates."""
        forwards = self.verifications + self.plain_decodes
        return Window(
            request=request,
            hit_rate=self.accepted_tokens / self.proposed_tokens if self.proposed_tokens else 0.0,
            accepted_length=self.emitted_tokens / forwards if forwards else 1.0,
            tokens_per_s=tokens_per_s,
        )


def mean(windows: Sequence[Window], rate: str) -> float:
    """Return a rate's mean over windows. Raises statistics.StatisticsError if there are none."""
    return fmean(getattr(window, rate) for window in windows)


def recovered_at(
    windows: Sequence[Window], level: float, rate: str, *, smooth: int = 3
) -> int | None:
    """Return the request from which the running mean stays at `level` or above; None if never.

    smooth: windows in the running mean, because a single one is a matter of a few calls.
    """
    back: int | None = None
    for index, window in enumerate(windows):
        if mean(windows[max(0, index - smooth + 1) : index + 1], rate) < level:
            back = None
        elif back is None:
            back = window.request
    return back
