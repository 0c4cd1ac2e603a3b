"""A model drafter that does not earn what it costs is left alone, and tried again later."""

import random

import pytest

from quickmatch.engine.speculation.model_worth import ModelWorth


def drive(worth: ModelWorth, num_steps: int, gain: float, *, num_seqs: int = 1) -> int:
    """Steps whose rate is `gain` times as high with the model; return how many were with it."""
    dice, num_with = random.Random(3), 0
    for _ in range(num_steps):
        is_with = worth.may_draft(num_seqs)
        num_with += is_with
        num_tokens = (gain if is_with else 1.0) * max(0.2, dice.gauss(3.0, 1.0))
        worth.stepped(num_seqs, is_on=True, num_tokens=num_tokens, num_plain_tokens=2.0)
    return num_with


@pytest.mark.parametrize("gain", [1.15, 1.4, 3.0])
def test_one_that_pays_is_hardly_kept_waiting(gain: float) -> None:
    assert drive(ModelWorth(), 2000, gain) > 0.97 * 2000


@pytest.mark.parametrize("gain", [0.8, 0.5])
def test_one_that_costs_more_than_it_brings_is_left_alone(gain: float) -> None:
    worth = ModelWorth()
    drive(worth, 600, gain)
    assert worth.is_left_alone(1)
    assert drive(worth, 8000, gain) < 0.15 * 8000


def test_it_is_tried_again_and_trusted_once_it_pays() -> None:
    worth = ModelWorth()
    drive(worth, 600, 0.5)
    drive(worth, 3000, 2.0)
    assert not worth.is_left_alone(1)
    assert drive(worth, 2000, 2.0) > 0.97 * 2000


def test_batch_sizes_are_told_apart_and_rests_let_a_verdict_pass() -> None:
    worth = ModelWorth()
    drive(worth, 600, 0.5)
    assert worth.is_left_alone(1)
    assert not worth.is_left_alone(8)
    for _ in range(5000):
        worth.rested(1)
    assert not worth.is_left_alone(1)
    worth.renew()
    assert worth.may_draft(1)


def test_nothing_is_judged_while_it_is_not_in_use() -> None:
    worth = ModelWorth()
    for _ in range(2000):
        worth.stepped(1, is_on=False, num_tokens=1.0, num_plain_tokens=2.0)
        assert worth.may_draft(1)
