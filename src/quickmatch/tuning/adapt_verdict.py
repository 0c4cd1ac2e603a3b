"""Whether a new head stays: what speculation did after the swap against before it.

Two measures speak. Speed, against plain decoding in the same period, is what counts, and is noisy
on a machine that does other work too. Accepted length has no such noise and knows no costs; the
hit rate says little, as drafting less raises it. So a clear loss of speed decides by itself, and a
smaller one only where the head foretells less as well. Invariant: without anything to compare
with, the head stays, as it has passed the gate on calls that it had not seen.
"""

from dataclasses import dataclass

from quickmatch.core.speculation_counts import SpeculationCounts

SPEED_NOISE = 0.10  # of speed-up, between two periods of the same traffic
LENGTH_NOISE = 0.03  # of accepted length
DRIFT_DROP = 0.05  # of accepted length
MIN_TOKENS = 100  # decoded in a period that counts


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and why in one line."""

    keeps: bool
    text: str


def judge(before: SpeculationCounts, after: SpeculationCounts) -> Verdict:
    """Return whether what came after the swap is not worse."""
    length = _growth(before, after, "accepted_length")
    if length is None:
        return Verdict(True, "too little was decoded to compare")
    text = f"accepted length {after.accepted_length:.2f}, before {before.accepted_length:.2f}"
    speed = _growth(before, after, "speed_up")
    if speed is None:
        return Verdict(length >= -LENGTH_NOISE, text)
    text = f"speed-up {after.speed_up:.2f}, before {before.speed_up:.2f}; {text}"
    is_slower = speed < -SPEED_NOISE or (speed <= 0.0 and length < -LENGTH_NOISE)
    return Verdict(not is_slower, text)


def has_fallen(before: SpeculationCounts, after: SpeculationCounts) -> bool:
    """Return whether a drift lasts. The suffix index and calibration may have mended it already."""
    length = _growth(before, after, "accepted_length")
    return length is None or length < -DRIFT_DROP


def both(before: SpeculationCounts, after: SpeculationCounts) -> dict[str, float]:
    """Return the rates of both periods, for the history."""
    old = {f"{name}_before": value for name, value in before.figures().items()}
    return {**after.figures(), **old}


def _growth(before: SpeculationCounts, after: SpeculationCounts, rate: str) -> float | None:
    """Return by what share a rate grew; None where a period says too little."""
    old, new = getattr(before, rate), getattr(after, rate)
    if old is None or new is None or min(before.num_emitted, after.num_emitted) < MIN_TOKENS:
        return None
    return float(new / old - 1.0)
