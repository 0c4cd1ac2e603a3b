from quickmatch.engine.speculation.request_state import RequestState
from quickmatch.engine.speculation.tree import Source

SUFFIX, HEAD = Source.SUFFIX_LOCAL, Source.HEAD


def test_a_failing_request_falls_within_a_few_steps_and_comes_back() -> None:
    # Guards: one request whose drafts fail goes on failing, or is given up for good.
    state = RequestState(0)
    for _ in range(5):
        state.add(SUFFIX, 0.8, 0)
    assert state.ratios[SUFFIX] < 0.55
    assert state.ratios[HEAD] == 1.0
    for now in range(1, 400):
        state.review(now)
    assert state.ratios[SUFFIX] > 0.9


def test_a_request_that_does_better_is_believed_more() -> None:
    # Guards: the usual acceptance as a ceiling.
    state = RequestState(0)
    for _ in range(10):
        state.add(SUFFIX, 2.0, 4.0)
    assert 1.5 < state.ratios[SUFFIX] <= 2.5


def test_a_model_s_promise_is_kept_by_request() -> None:
    # Guards: the head asked for a request that it never helps.
    good, bad = RequestState(0), RequestState(0)
    for _ in range(8):
        good.promised(4.0, 2.0)
        bad.promised(0.1, 2.0)
    assert bad.model_ratio < 0.4 < 1.5 < good.model_ratio


def asked(state: RequestState, steps: range, longest_pause: int) -> int:
    return sum(state.ask(now, longest_pause) for now in steps)


def test_drafts_of_no_use_are_asked_for_less_and_less() -> None:
    # Guards: text without structure pays for a draft in every step.
    state = RequestState(0)
    assert asked(state, range(100), 32) < 20
    assert asked(state, range(100, 420), 32) <= 11
    assert asked(RequestState(0), range(100), 1) == 100  # where asking costs next to nothing


def test_a_right_guess_or_help_ends_the_pause() -> None:
    # Guards: a copy that begins just after the pause did is found 32 steps late.
    state = RequestState(0)
    asked(state, range(200), 32)
    pausing = next(now for now in range(200, 300) if not state.ask(now, 32))
    state.was_right()
    assert state.ask(pausing + 1, 32)
    state.helped()
    assert asked(state, range(pausing + 2, pausing + 6), 32) == 4


def test_blocks_tell_a_request_s_acceptance() -> None:
    # Guards: drift of the traffic reckoned by tokens, so that one long request is a drift.
    state = RequestState(0)
    blocks = [state.count(SUFFIX, 4, 3) for _ in range(16)]
    assert blocks == [None] * 15 + [0.75]
    state.count(SUFFIX, 4, 4)
    assert state.take_block(SUFFIX) is None  # too few to tell
