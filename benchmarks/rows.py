"""Rows of a result: a measured value, the bar set for it, and whether it holds.

A bar is absolute ("at least 0.95") or a multiple of what a peer did ("at least 1.0 × the
peer"). A bar against a peer is judged by the ratio of the two in the same repetition, taken
as the median over the repetitions: a machine that slows down for a second slows both sides of
a pair, so the ratio is steadier than either value.

Invariant: `holds` is None exactly where there is no bar or nothing to judge it by; a failed
bar stays in the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal


@dataclass(frozen=True, slots=True)
class Bar:
    """A bound; `times_peer` makes `limit` a factor on the peer's value."""

    sense: Literal["≥", "≤"]
    limit: float
    times_peer: bool = False

    def __str__(self) -> str:
        return f"{self.sense} {self.limit:g}" + (" × peer" if self.times_peer else "")

    def holds(self, value: float | None, ratio: float | None = None) -> bool | None:
        """Judge a value, or for `times_peer` the ratio to the peer; None if that is missing."""
        judged = ratio if self.times_peer else value
        if judged is None:
            return None
        return judged >= self.limit if self.sense == "≥" else judged <= self.limit


def at_least(limit: float, *, times_peer: bool = False) -> Bar:
    """The value is good from `limit` up."""
    return Bar("≥", limit, times_peer)


def at_most(limit: float, *, times_peer: bool = False) -> Bar:
    """The value is good up to `limit`."""
    return Bar("≤", limit, times_peer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a result. Values are medians over the repetitions."""

    measure: str
    value: float | None
    unit: str
    bar: str | None = None
    holds: bool | None = None
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None  # ours ÷ peer, median of the pairs
    note: str = ""  # why a value is missing


def single(measure: str, samples: Sequence[float], unit: str, bar: Bar | None = None) -> Row:
    """Make the row of a measure that has no peer."""
    value = median(samples) if samples else None
    return Row(
        measure=measure,
        value=value,
        unit=unit,
        bar=str(bar) if bar else None,
        holds=bar.holds(value) if bar else None,
    )


def against(
    measure: str,
    unit: str,
    ours: Sequence[float],
    peers: Mapping[str, Sequence[float]],
    *,
    bars: Mapping[str, Bar] | None = None,
    missing: Mapping[str, str] | None = None,
) -> list[Row]:
    """Make one row a peer, missing ones included.

    ours, peers: samples in the order of the repetitions; index i of all was taken in turn i.
    bars: the bar against each peer that has one. missing: peer -> why it was not measured.
    """
    bars, missing = bars or {}, missing or {}
    rows = []
    for peer in [*peers, *missing]:
        theirs = peers.get(peer, ())
        bar, ratio = bars.get(peer), paired_ratio(ours, theirs)
        row = Row(
            measure=measure,
            value=median(ours) if ours else None,
            unit=unit,
            bar=str(bar) if bar else None,
            holds=bar.holds(None, ratio) if bar else None,
            peer=peer,
            peer_value=median(theirs) if theirs else None,
            ratio=ratio,
            note=missing.get(peer, ""),
        )
        rows.append(row)
    return rows or [single(measure, ours, unit)]


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the median of ours[i] / theirs[i]; None if either has no samples."""
    if not ours or not theirs:
        return None
    return median(a / b for a, b in zip(ours, theirs, strict=True))
