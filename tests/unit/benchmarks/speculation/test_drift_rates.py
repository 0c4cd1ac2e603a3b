"""Drift: counters from metrics text, and when a rate is back to stay."""

import pytest

from benchmarks.speculation.drift_rates import Counters, Window, recovered_at

METRICS = """\
# HELP quickmatch_speculation_proposed_tokens_total Tokens drafted and verified.
quickmatch_speculation_proposed_tokens_total{deployment="a",drafter="head"} 30.0
quickmatch_speculation_proposed_tokens_total{deployment="a",drafter="suffix_local"} 10.0
quickmatch_speculation_accepted_tokens_total{deployment="a",drafter="head"} 24.0
quickmatch_speculation_emitted_tokens_total{deployment="a"} 60.0
quickmatch_speculation_verifications_total{deployment="a"} 20.0
quickmatch_speculation_plain_decodes_total{deployment="a"} 10.0
quickmatch_speculation_proposed_tokens_created{deployment="a",drafter="head"} 1.7e9
quickmatch_requests_total 99.0
"""


def test_counters_are_summed_over_their_labels() -> None:
    found = Counters.read(METRICS)
    assert (found.proposed_tokens, found.accepted_tokens) == (40.0, 24.0)


def test_a_window_is_the_growth_between_two_looks() -> None:
    later = Counters(140.0, 114.0, 260.0, 90.0, 40.0)
    window = later.since(Counters.read(METRICS)).window(20, 123.0)
    assert window.hit_rate == pytest.approx(0.9)
    assert window.accepted_length == pytest.approx(2.0)
    assert (window.request, window.tokens_per_s) == (20, 123.0)


def test_nothing_proposed_is_no_division() -> None:
    assert Counters().window(10, 1.0) == Window(10, 0.0, 1.0, 1.0)


def windows(*rates: float) -> list[Window]:
    return [Window(10 * (i + 1), rate, 2.0, 100.0) for i, rate in enumerate(rates)]


def test_recovered_where_the_running_mean_stays_above() -> None:
    assert recovered_at(windows(0.2, 0.5, 0.9, 0.9, 0.9), 0.7, "hit_rate", smooth=1) == 30
    assert recovered_at(windows(0.2, 0.8, 0.8, 0.8), 0.7, "hit_rate", smooth=3) == 40


def test_a_relapse_counts_anew() -> None:
    assert recovered_at(windows(0.9, 0.2, 0.9), 0.7, "hit_rate", smooth=1) == 30


def test_never_back() -> None:
    assert recovered_at(windows(0.2, 0.3), 0.7, "hit_rate") is None
