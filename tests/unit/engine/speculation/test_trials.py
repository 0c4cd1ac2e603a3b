import pytest

from quickmatch.engine.speculation.costs import CostTable
from quickmatch.engine.speculation.trials import Trials

PLAIN_S = 2e-3


@pytest.fixture
def trials() -> Trials:
    costs = CostTable()
    for _ in range(10):
        costs.observe(1, 1, PLAIN_S)
        costs.observe(8, 8, 4e-3)
        costs.observe(1, 8, 2.4e-3)
    return Trials(costs)


def step(trials: Trials, num_tokens: int = 1, seconds: float = PLAIN_S) -> None:
    trials.stepped(num_tokens=num_tokens, seconds=seconds, is_plain=num_tokens == 1)


def test_trials_of_a_model_stay_within_their_share(trials: Trials) -> None:
    # Guards: a head that never helps costs more than some parts in a thousand.
    drafting_s, lost = 0.5e-3, 0.0
    for _ in range(5000):
        lost += drafting_s * trials.tries_model(drafting_s)
        step(trials)
    assert 0.003 < lost / (5000 * PLAIN_S) < 0.005


def test_a_trial_that_was_right_is_followed_by_the_next(trials: Trials) -> None:
    # Guards: a head that has become good is found good only after minutes.
    while not trials.tries_model(0.5e-3):
        step(trials)
    for _ in range(10):
        trials.won()
        step(trials)
        assert trials.tries_model(0.5e-3)


def test_later_trials_are_not_paid_back_until_the_model_is_another(trials: Trials) -> None:
    # Guards: a head that is right and of no use, tried step by step for ever.
    def num_tried(num_steps: int) -> int:
        count = 0
        for _ in range(num_steps):
            if trials.tries_model(0.5e-3):
                count += 1
                trials.won()
            step(trials)
        return count

    first = num_tried(1000)
    later = num_tried(1000)
    assert first > later + 25
    trials.renew()
    assert num_tried(1000) > later + 25


def test_a_plain_step_comes_now_and_then_while_drafting(trials: Trials) -> None:
    # Guards: the plain step's cost never measured again, or so often that it costs speed.
    num_plain = 0
    for _ in range(5000):
        is_plain = trials.is_plain_due(1)
        num_plain += is_plain
        trials.stepped(num_tokens=1 if is_plain else 4, seconds=2.4e-3, is_plain=is_plain)
    assert 15 < num_plain < 50


def test_the_first_step_of_all_is_plain() -> None:
    # Guards: a speed-up reckoned from a plain step that was never timed.
    assert Trials(CostTable()).is_plain_due(1)


def test_pauses_follow_what_asking_costs(trials: Trials) -> None:
    # Guards: cheap drafters that were made slow take a tenth of the time on text like noise.
    usual = trials.longest_pause(1)
    for _ in range(200):
        trials.asked(1, 200e-6)
    assert trials.longest_pause(1) == 32 > usual
    for _ in range(400):
        trials.asked(8, 8e-6)
    assert trials.longest_pause(1) == 1
