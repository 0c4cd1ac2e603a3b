"""A head is judged by speed, and by what it foretells where speed is within the noise."""

import pytest

from quickmatch.core.speculation_counts import SpeculationCounts
from quickmatch.tuning.adapt_verdict import both, has_fallen, judge


def period(
    length: float, speed_up: float | None = None, *, num_steps: int = 1000
) -> SpeculationCounts:
    return SpeculationCounts(
        num_verified=num_steps,
        num_emitted=round(length * num_steps),
        busy_s=0.0 if speed_up is None else 10.0,
        plain_s=0.0 if speed_up is None else 10.0 * speed_up,
    )


@pytest.mark.parametrize(
    ("before", "after", "keeps"),
    [
        (period(3.0, 2.0), period(3.5, 2.3), True),
        (period(3.0, 2.0), period(3.5, 1.85), True),  # within the noise of a busy machine
        (period(3.0, 2.0), period(3.5, 1.7), False),  # foretells more at too high a price
        (period(3.0, 2.0), period(2.8, 2.2), True),  # shorter drafts, and faster
        (period(3.0, 2.0), period(2.8, 1.95), False),  # neither
        (period(3.0, 2.0), period(2.95, 1.95), True),  # as good as before
        (period(3.0), period(2.95), True),
        (period(3.0), period(2.8, 2.0), False),
        (period(3.0, 2.0, num_steps=20), period(1.0, 0.5), True),  # too little to compare with
        (SpeculationCounts(), period(1.0, 0.5), True),
    ],
)
def test_what_is_kept(before: SpeculationCounts, after: SpeculationCounts, keeps: bool) -> None:
    assert judge(before, after).keeps is keeps


def test_the_reason_names_both_figures() -> None:
    verdict = judge(period(3.0, 2.0), period(2.0, 1.0))
    assert verdict.text == "speed-up 1.00, before 2.00; accepted length 2.00, before 3.00"
    assert both(period(3.0, 2.0), period(2.0)) == {
        "accepted_length": 2.0, "accepted_length_before": 3.0, "speed_up_before": 2.0,
    }  # fmt: skip


def test_a_drift_lasts_until_accepted_length_is_back() -> None:
    assert has_fallen(period(3.0), period(2.7))
    assert not has_fallen(period(3.0), period(2.9))
    assert has_fallen(SpeculationCounts(), period(3.0))  # nobody knows what it was
