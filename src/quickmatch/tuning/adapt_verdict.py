"""Whether a new head stays: what speculation did after the swap against before it.

Speed decides, as measured against plain decoding in the same period, so that a busier machine
weighs on both sides; where no speed was measured, accepted length does. The hit rate alone says
little: drafting less raises it. Invariant: without anything to compare with, the head stays, as
it has passed the gate on calls that it had not seen.
"""

from dataclasses import dataclass

from quickmatch.core.speculation_counts import SpeculationCounts

TOLERANCE = 0.03  # less is noise
DRIFT_DROP = 0.05  # of accepted length
MIN_TOKENS = 200  # decoded in a period that counts


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and why in one line."""

    keeps: bool
    text: str


def judge(before: SpeculationCounts, after: SpeculationCounts) -> Verdict:
    """Return whether what came after the swap is not worse."""
    for measure, words in (("speed_up", "speed-up"), ("accepted_length", "accepted length")):
        old, new = getattr(before, measure), getattr(after, measure)
        if old is None or new is None or min(before.num_emitted, after.num_emitted) < MIN_TOKENS:
            continue
        keeps = new >= old * (1.0 - TOLERANCE)
        return Verdict(keeps, f"{words} {new:.2f}, before {old:.2f}")
    return Verdict(True, "too little was decoded before the swap to compare with")


def has_fallen(before: SpeculationCounts, after: SpeculationCounts) -> bool:
    """Return whether a drift lasts. The suffix index and calibration may have mended it already."""
    old, new = before.accepted_length, after.accepted_length
    if old is None or new is None or before.num_emitted < MIN_TOKENS:
        return True
    return new < old * (1.0 - DRIFT_DROP)


def both(before: SpeculationCounts, after: SpeculationCounts) -> dict[str, float]:
    """Return the rates of both periods, for the history."""
    old = {f"{name}_before": value for name, value in before.figures().items()}
    return {**after.figures(), **old}
