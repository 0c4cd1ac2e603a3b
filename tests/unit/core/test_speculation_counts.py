"""Rates of speculation, from sums and from differences of sums."""

import pytest

from quickmatch.core.speculation_counts import SpeculationCounts, drafter_shares

REPORT = {
    "num_verified": 30, "num_plain": 10, "num_proposed": 200, "num_accepted": 160,
    "num_emitted": 200, "busy_s": 2.0, "plain_s": 6.0, "draft_s": 0.1, "index_tokens": 7,
    "sources": {"head": {"num_proposed": 150, "num_accepted": 120},
                "suffix_local": {"num_proposed": 50, "num_accepted": 40}},
}  # fmt: skip


def test_rates_are_as_the_field_defines_them() -> None:
    counts = SpeculationCounts.of(REPORT)
    assert counts.hit_rate == pytest.approx(0.8)
    assert counts.accepted_length == pytest.approx(5.0)
    assert counts.speed_up == pytest.approx(3.0)
    assert counts.figures() == {"hit_rate": 0.8, "accepted_length": 5.0, "speed_up": 3.0}


def test_no_work_has_no_rates() -> None:
    assert SpeculationCounts.of(None).figures() == {}
    plain = SpeculationCounts(num_plain=4, num_emitted=4, busy_s=1.0)
    assert plain.figures() == {"accepted_length": 1.0}


def test_a_difference_is_what_came_between() -> None:
    earlier = SpeculationCounts(num_verified=10, num_proposed=100, num_accepted=10, num_emitted=20)
    later = SpeculationCounts.of(REPORT)
    between = later.since(earlier)
    assert (between.num_proposed, between.num_accepted) == (100, 150)
    assert between.plus(earlier) == later


def test_sums_that_went_down_come_from_a_new_engine() -> None:
    anew = SpeculationCounts(num_verified=1, num_proposed=4, num_emitted=2)
    assert anew.since(SpeculationCounts.of(REPORT)) == anew


def test_shares_are_of_the_accepted_tokens() -> None:
    assert drafter_shares(REPORT) == {"head": 0.75, "suffix_local": 0.25}
    assert drafter_shares({"sources": {}}) == {}
    assert drafter_shares({"sources": {"head": {"num_proposed": 9, "num_accepted": 0}}}) == {}
