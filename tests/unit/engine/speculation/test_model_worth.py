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
    # Guards: turns without it that cost a hundredth of the tokens that it gives.
    num_without = 2000 - drive(ModelWorth(), 2000, gain)
    assert num_without / 2000 * (1 - 1 / gain) < 0.012


@pytest.mark.parametrize("seed", range(5))
def test_one_that_costs_a_little_is_not_favoured_by_its_longer_turns(seed: int) -> None:
    # Guards: the mean of the turns' ratios, which the short and uneven turns without it push up.
    dice, worth, num_worth = random.Random(seed), ModelWorth(), 0
    for num_seqs in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        for _ in range(900):
            some = [0.3, 0.3, 2.1] if worth.may_draft(num_seqs) else [0.1, 0.1, 0.1, 3.7]
            num_tokens = dice.choice(some)  # on average 0.9 and 1.0
            worth.stepped(num_seqs, is_on=True, num_tokens=num_tokens, num_plain_tokens=1.0)
        num_worth += not worth.is_left_alone(num_seqs)
    assert num_worth <= 5


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
