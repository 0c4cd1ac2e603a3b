"""Turns: what is counted of a stream, and how equal texts and loops are told."""

from typing import Any

import pytest

from benchmarks.speculation.calls import Call, answer_of, loops
from benchmarks.speculation.running import Arm
from benchmarks.speculation.turns import ALL, Turns, equal_share, rounds_of

CALLS = [Call("a", (1, 2), 10), Call("b", (3,), 10), Call("a", (4,), 10)]


class Engine:
    """Answers every call with so many tokens; one takes a second, a prompt half of one."""

    def __init__(self, count: int = 5, token: int = 7) -> None:
        self.count, self.token, self.asked = count, token, []

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        assert op == "complete"
        self.asked.append(fields)
        outputs = []
        for call in fields["calls"]:
            count = min(self.count, call["max_tokens"])
            stats = {"num_proposed": 4, "num_accepted": 3, "num_verified": 1, "num_emitted": count}
            ids = [self.token] * (count - 1) + [2]
            outputs.append({"token_ids": ids, "seconds": 0.5 + count, "stats": stats})
        total = sum(output["seconds"] for output in outputs)
        stats = {"num_proposed": 4 * len(outputs), "num_accepted": 3 * len(outputs)}
        return {"seconds": total, "outputs": outputs, "stats": stats}


def turns_of(engine: Engine, concurrency: int = 1) -> Turns:
    return Turns(Arm("x", contender=engine), [CALLS, CALLS], concurrency, ALL)  # type: ignore[arg-type]


def test_decode_leaves_prompts_and_first_tokens_out() -> None:
    values = turns_of(Engine())()
    # 3 answers of 4 tokens without their end; 5.5 s each, of which 1.5 s for a first token.
    assert values["throughput, all, B=1"] == pytest.approx(12 / 16.5)
    assert values["decode, all, B=1"] == pytest.approx((12 - 3) / (16.5 - 4.5))
    assert values["hit rate, all, B=1"] == pytest.approx(0.75)


def test_one_at_a_time_each_workload_is_told_apart() -> None:
    values = turns_of(Engine())()
    assert values["throughput, b, B=1"] == pytest.approx(4 / 5.5)
    assert not any(", b," in name for name in turns_of(Engine(), concurrency=8)())


def test_rounds_are_taken_in_order_and_asked_once_for_first_tokens() -> None:
    engine = Engine()
    turns_of(engine)()
    limits = [[call["max_tokens"] for call in fields["calls"]] for fields in engine.asked]
    assert limits == [[2, 2], [1, 1, 1], [10, 10, 10]]


def test_a_failed_arm_says_nothing_more() -> None:
    arm = Arm("suffix", reason="gone")
    assert Turns(arm, [CALLS], 1, ALL)() == {}


def test_equal_share_compares_call_by_call() -> None:
    same, other = turns_of(Engine()), turns_of(Engine(token=8))
    reference = turns_of(Engine())
    for turns in (same, other, reference):
        turns()
    assert equal_share(same, reference) == 1.0
    assert equal_share(other, reference) == 0.0
    assert equal_share(turns_of(Engine()), reference) is None


def test_rounds_never_share_a_call() -> None:
    calls = [Call("a", (i,), 1) for i in range(7)]
    rounds = rounds_of(calls, 3, 2)
    assert [len(of_round) for of_round in rounds] == [2, 2, 2]
    assert len({call for of_round in rounds for call in of_round}) == 6
    with pytest.raises(ValueError, match="too few"):
        rounds_of(calls, 4, 2)


def test_an_answer_ends_before_its_end_token() -> None:
    assert answer_of([5, 6, 2, 9]) == [5, 6]
    assert answer_of([5, 6]) == [5, 6]


def test_loops_are_runs_that_come_again_and_again() -> None:
    assert loops([1, 2, 3] * 20)
    assert not loops(list(range(60)))
    assert not loops([1, 2, 3] * 4)  # too short to tell


def test_a_text_that_quotes_itself_once_is_no_loop() -> None:
    assert not loops([*range(40), *range(12)])
