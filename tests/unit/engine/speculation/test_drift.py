import random

from quickmatch.engine.speculation.drift import DriftTest, DriftWatch, PageHinkley
from quickmatch.engine.speculation.tree import Source

HEAD = Source.HEAD


def test_page_hinkley_tells_a_rise_of_the_mean_from_noise() -> None:
    # Guards: a sum that is never taken back, which gives the alarm by noise alone.
    dice, test = random.Random(0), PageHinkley(0.1, 10.0)
    assert not any(test.add(dice.gauss(0.0, 0.4)) for _ in range(20_000))
    assert any(test.add(dice.gauss(0.6, 0.4)) for _ in range(40))


def test_a_fall_below_what_was_foretold_is_noticed_within_thirty_tokens() -> None:
    # Guards: calibration that learns a new workload only at its own slow pace.
    dice, test = random.Random(1), DriftTest()
    assert sum(test.add_token(0.8, dice.random() < 0.8) for _ in range(5000)) <= 2
    assert any(test.add_token(0.8, dice.random() < 0.1) for _ in range(30))


def test_a_rise_above_what_was_foretold_is_noticed_within_twenty_tokens() -> None:
    # Guards: a drafter that was given up and has become good stays given up.
    dice, test = random.Random(2), DriftTest()
    assert sum(test.add_token(0.1, dice.random() < 0.1) for _ in range(5000)) <= 5
    assert any(test.add_token(0.1, dice.random() < 0.9) for _ in range(20))


def test_requests_that_differ_are_no_drift_of_the_traffic() -> None:
    # Guards: heads trained anew because one request in three is unlike the others.
    dice, watch = random.Random(3), DriftWatch()
    for _ in range(1000):
        watch.add_block("a", HEAD, dice.choice([0.9, 0.7, 0.2]))
    assert watch.drifts.get("a", 0) <= 2


def test_a_fall_of_many_requests_is_one_drift() -> None:
    # Guards: a drift that goes unnoticed, or is counted again and again.
    dice, watch = random.Random(4), DriftWatch()
    for _ in range(50):
        watch.add_block("a", HEAD, dice.uniform(0.7, 0.9))
    for _ in range(15):
        watch.add_block("a", HEAD, dice.uniform(0.0, 0.2))
    assert watch.drifts == {"a": 1}
    for _ in range(100):
        watch.add_block("a", HEAD, dice.uniform(0.0, 0.2))
    assert watch.drifts == {"a": 1}


def test_scopes_and_sources_are_told_apart() -> None:
    # Guards: one tenant's new workload hidden by another's, or blamed on it.
    watch = DriftWatch()
    for _ in range(30):
        for scope in ("a", "b"):
            watch.add_block(scope, HEAD, 0.8)
            watch.add_block(scope, Source.SUFFIX_GLOBAL, 0.8)
    for _ in range(12):
        watch.add_block("a", HEAD, 0.1)
        watch.add_block("b", HEAD, 0.8)
    assert watch.drifts == {"a": 1}
    assert watch.test("a", HEAD) is not watch.test("b", HEAD)
