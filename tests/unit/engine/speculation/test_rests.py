"""When speculation rests, looks, samples and wakes."""

from quickmatch.engine.speculation.host_time import HostTime
from quickmatch.engine.speculation.rests import Rests
from quickmatch.engine.speculation.turns import Turns

NEWS, WINDOW = 96, 24  # steps awake at first; steps that are judged together
TO_LEARN = 48  # steps awake after promising looks


def awake(rests: Rests, steps: int, *, gain: float) -> None:
    """Run so many steps that are no rests, with `gain` times the tokens of plain decoding."""
    for _ in range(steps):
        assert not rests.begin_step()
        rests.stepped(num_seqs=100, num_tokens=round(100 * gain), num_plain_tokens=100.0)


def rest(rests: Rests, *, steps: int = 10_000) -> int:
    """Run a rest to its end, but no more than `steps`; return how many plain steps it had."""
    for count in range(steps):
        if not rests.begin_step():
            return count
    return steps


def look(
    rests: Rests, *, is_worth: bool = False, is_right: bool = False, gain: float = 1.0
) -> None:
    """Take the step of a look, which has begun."""
    assert rests.is_looking
    rests.decided(is_worth=is_worth)
    rests.judged(is_right=is_right)
    rests.stepped(num_seqs=100, num_tokens=round(100 * gain), num_plain_tokens=100.0)


def tired() -> Rests:
    rests = Rests()
    awake(rests, NEWS, gain=1.0)
    assert rests.is_resting
    return rests


def test_it_rests_where_drafting_brings_nothing_and_not_before_it_knows() -> None:
    rests = Rests()
    awake(rests, NEWS - 1, gain=0.5)
    assert not rests.is_resting
    awake(rests, 1, gain=0.5)
    assert rests.is_resting


def test_it_does_not_rest_where_drafting_pays() -> None:
    rests = Rests()
    awake(rests, 230, gain=1.5)
    assert not rests.is_resting


def test_a_bad_window_ends_in_a_rest_only_once_the_winnings_are_gone() -> None:
    rests = Rests()
    awake(rests, 5 * WINDOW, gain=1.5)  # as many plain steps as the account holds: 24
    awake(rests, 3 * WINDOW, gain=0.7)  # 21.6 of them lost
    assert not rests.is_resting
    awake(rests, WINDOW, gain=0.7)
    assert rests.is_resting


def test_what_a_models_trial_loses_is_no_reason_for_a_rest() -> None:
    rests = Rests()
    awake(rests, NEWS - WINDOW, gain=1.0)
    for _ in range(10 * WINDOW):
        assert not rests.begin_step() or rests.is_sampling
        rests.stepped(num_seqs=100, num_tokens=80, num_plain_tokens=100.0, is_trial=True)
    assert not rests.is_resting or rests.is_sampling
    rest(rests)
    awake(rests, WINDOW, gain=1.0)  # the same steps without one bring nothing
    assert rests.is_resting


def test_looks_lose_a_small_share_of_the_time_whatever_they_cost_and_promise() -> None:
    for gain, is_right in ((0.5, False), (-3.0, False), (0.2, True)):
        rests, lost, steps = tired(), 0.0, 0
        while steps < 20_000:
            steps += rest(rests)
            if rests.is_looking:
                look(rests, is_right=is_right, gain=gain)
                lost += 1.0 - gain
            while not (rests.is_resting or rests.is_looking):  # promising looks: awake to learn
                awake(rests, 1, gain=0.8)
                lost += 0.2
        assert lost < 0.02 * steps


def test_the_cheaper_looks_are_the_more_there_are() -> None:
    pauses = []
    for gain in (0.9, -1.0):
        rests = tired()
        for _ in range(12):
            pause = rest(rests)
            look(rests, gain=gain)
        pauses.append(pause)
    assert pauses[0] < 64 < 200 < pauses[1]


def test_a_gain_must_be_found_twice() -> None:
    rests = tired()
    rest(rests)
    look(rests, is_worth=True)
    assert rests.is_looking
    look(rests)  # it was luck
    assert rests.is_resting
    rest(rests)
    look(rests, is_worth=True)
    look(rests, is_worth=True)
    assert not rests.is_looking
    awake(rests, WINDOW - 1, gain=1.5)
    assert not rests.is_resting


def test_drafts_that_turn_out_right_wake_it_though_none_seemed_worth_it() -> None:
    rests = tired()
    rest(rests)
    for _ in range(3):
        look(rests, is_right=True)
    assert not rests.is_looking
    awake(rests, TO_LEARN - 1, gain=0.5)  # time to learn, whatever it brings


def test_a_new_request_brings_the_next_look_nearer() -> None:
    asked, unasked = tired(), tired()
    asked.arrived(is_watched=False)
    assert 2 * rest(asked) < rest(unasked)


def test_a_request_that_a_head_is_told_of_brings_a_look_unless_looks_have_lost_too_much() -> None:
    rests = tired()
    assert rest(rests, steps=60) == 60
    assert rests.affords_look
    rests.arrived(is_watched=True)
    look(rests, gain=-9.0)
    assert not rests.affords_look
    assert rest(rests, steps=60) == 60
    rests.arrived(is_watched=True)
    assert rests.begin_step()


def test_what_a_caller_foretells_ends_a_rest_for_a_window() -> None:
    # Guards: a request with a prediction that comes in a rest and is hardly drafted for.
    rests = tired()
    rests.foretold()
    assert not rests.is_resting
    awake(rests, WINDOW - 1, gain=1.0)
    assert not rests.is_resting
    awake(rests, 1, gain=1.0)
    assert rests.is_resting


def test_another_model_ends_a_rest() -> None:
    rests = tired()
    assert rests.begin_step()
    rests.wake()
    awake(rests, NEWS - 1, gain=0.5)


def test_plain_steps_are_sampled_and_only_settled_ones_timed() -> None:
    rests, plain, timed = Rests(), [], []
    for step in range(700):
        if rests.begin_step():
            plain.append(step)
            if rests.is_telling:
                timed.append(step)
        else:
            rests.stepped(num_seqs=100, num_tokens=200, num_plain_tokens=100.0)
    assert plain == [*range(240, 244), *range(485, 489)]
    assert timed == [243, 488]


def test_decisions_get_a_share_of_the_time_and_more_while_there_is_much_to_learn() -> None:
    slow, fast = Turns(), Turns()
    for turns, step_s in ((slow, 20e-3), (fast, 0.5e-3)):
        for now in range(400):
            if turns.is_due(now):
                turns.decided(now, num_seqs=1, is_worth=True)
            turns.stepped(step_s)
    assert slow.is_due(400)  # every step
    gaps = [n for n in range(400, 420) if not fast.is_due(n)]
    assert 0 < len(gaps) <= 8
    fast.renew()
    assert fast.is_due(400)


def test_nothing_is_asked_between_decisions_that_find_nothing() -> None:
    turns = Turns()
    for now in range(6):
        assert turns.is_drafting
        turns.decided(now, num_seqs=2, is_worth=False)
    assert not turns.is_drafting
    turns.decided(6, num_seqs=2, is_worth=True)
    assert turns.is_drafting
    assert turns.holds(2)
    assert not turns.holds(3)


def test_host_time_is_what_each_kind_of_draft_adds() -> None:
    host = HostTime()
    assert (host.of_drafts_s, host.of_model_s) == (0.0, 0.0)
    host.add(2.0, has_drafts=False, has_plan=False)
    host.add(5.0, has_drafts=True, has_plan=False)
    host.add(9.0, has_drafts=True, has_plan=True)
    assert (host.of_drafts_s, host.of_model_s) == (3.0, 4.0)
    assert host.of_telling_s(8) == 0.0
    host.told(6.0, 3)
    assert host.of_telling_s(8) == 16.0
