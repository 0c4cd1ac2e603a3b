from itertools import count

import pytest

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import SampleState
from quickmatch.engine.blocks import BlockAllocator, root_digest
from quickmatch.engine.scheduler import Scheduler, Step
from quickmatch.engine.sequence import Sequence, SequenceState

_arrivals = count()


def make(name: str, num_tokens: int, *, key: str = "", first: int = 1) -> Sequence:
    prompt = list(range(first, first + num_tokens))
    return Sequence(
        request_id=name,
        token_ids=list(prompt),
        sample=SampleState(SamplingParams(), 0, prompt),
        max_len=1000,
        root=root_digest(0, key),
        arrival_s=float(next(_arrivals)),
    )


def make_scheduler(num_blocks: int = 16, *, seqs: int = 4, budget: int = 8) -> Scheduler:
    return Scheduler(
        BlockAllocator(num_blocks, 4),
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        max_queue_len=3,
        clock=lambda: 0.0,
    )


def run(scheduler: Scheduler, token_id: int = 99) -> Step:
    """Schedule one step and pretend that it was computed."""
    step = scheduler.schedule()
    scheduler.check_integrity()
    assert sum(s.num_tokens for s in step.batch.spans) == len(step.batch.token_ids)
    for sequence, span in zip(step.sequences, step.batch.spans, strict=True):
        is_decode = sequence.num_output_tokens > 0 and span.num_tokens == 1
        if span.sample is not None:
            sequence.extend([token_id])
        scheduler.advance(sequence, span.num_tokens, is_decode=is_decode)
    scheduler.check_integrity()
    return step


def shape(step: Step) -> list[tuple[str, int]]:
    return [
        (sequence.request_id, span.num_tokens)
        for sequence, span in zip(step.sequences, step.batch.spans, strict=True)
    ]


def test_an_empty_step_only_without_sequences() -> None:
    scheduler = make_scheduler()
    assert scheduler.schedule() == Step()
    scheduler.add(make("a", 3))
    assert shape(scheduler.schedule()) == [("a", 3)]


def test_spans_tell_positions_slots_and_context() -> None:
    scheduler = make_scheduler(budget=4)
    scheduler.add(make("a", 6))
    batch = run(scheduler).batch
    table = batch.spans[0].block_table
    assert batch.token_ids == [1, 2, 3, 4]
    assert batch.positions == [0, 1, 2, 3]
    assert batch.slots == [table[0] * 4 + i for i in range(4)]
    assert batch.spans[0].context_len == 0
    assert batch.spans[0].sample is None  # a chunk that is not the prompt's last
    batch = run(scheduler).batch
    assert batch.token_ids == [5, 6]
    assert batch.slots == [table[1] * 4, table[1] * 4 + 1]
    assert batch.spans[0].context_len == 4
    assert batch.spans[0].sample is not None
    batch = run(scheduler).batch
    assert (batch.token_ids, batch.positions) == ([99], [6])
    assert batch.slots == [table[1] * 4 + 2]


def test_a_long_prompt_does_not_hold_up_decodes() -> None:
    scheduler = make_scheduler(num_blocks=64, budget=8)
    scheduler.add(make("short", 2))
    run(scheduler)
    scheduler.add(make("long", 40))
    for _ in range(5):
        assert shape(run(scheduler)) == [("short", 1), ("long", 7)]
    assert shape(run(scheduler)) == [("short", 1), ("long", 5)]
    assert shape(run(scheduler)) == [("short", 1), ("long", 1)]


def test_first_come_first_served_within_the_budget() -> None:
    scheduler = make_scheduler(budget=8)
    for name, num_tokens in (("a", 5), ("b", 5), ("c", 2)):
        scheduler.add(make(name, num_tokens, first=ord(name)))
    assert shape(run(scheduler)) == [("a", 5), ("b", 3)]
    assert shape(run(scheduler)) == [("a", 1), ("b", 2), ("c", 2)]


def test_never_more_sequences_than_allowed() -> None:
    scheduler = make_scheduler(seqs=2)
    for name in "abc":
        scheduler.add(make(name, 2, first=ord(name)))
    assert shape(run(scheduler)) == [("a", 2), ("b", 2)]
    scheduler.finish(scheduler.running[0])
    assert shape(run(scheduler)) == [("b", 1), ("c", 2)]


def test_the_queue_is_bounded() -> None:
    scheduler = make_scheduler(seqs=1)
    for name in "abcd":
        assert not scheduler.is_full
        scheduler.add(make(name, 2))
    assert scheduler.is_full  # one to run, three to wait
    scheduler.finish(scheduler.waiting[-1])
    assert not scheduler.is_full


def test_preempts_the_newest_and_lets_it_return_in_order() -> None:
    scheduler = make_scheduler(num_blocks=5, budget=16)
    for name in "ab":
        scheduler.add(make(name, 7, first=ord(name)))
    assert shape(run(scheduler)) == [("a", 7), ("b", 7)]  # 2 blocks each, 1 is free
    scheduler.add(make("c", 2))
    run(scheduler)  # the eighth tokens: still in the second blocks; c does not fit
    assert shape(run(scheduler)) == [("a", 1)]  # takes the last block, so b, newest, has to go
    assert scheduler.counters.num_preempted == 1
    assert [s.request_id for s in scheduler.waiting] == ["b", "c"]
    b = scheduler.waiting[0]
    assert b.state is SequenceState.WAITING
    assert b.num_output_tokens == 2
    scheduler.finish(scheduler.running[0])
    step = run(scheduler)
    # b's first two blocks were published and are still there; its ninth token is run again.
    assert shape(step) == [("b", 1), ("c", 2)]
    assert step.batch.spans[0].context_len == 8


def test_the_newest_preempts_itself_rather_than_an_older_one() -> None:
    scheduler = make_scheduler(num_blocks=4, budget=16)
    scheduler.add(make("a", 6))
    scheduler.add(make("b", 7, first=50))
    run(scheduler)
    run(scheduler)  # a holds 7 tokens' KV, b holds 8: b needs a third block, there is none
    assert shape(run(scheduler)) == [("a", 1)]
    assert [s.request_id for s in scheduler.waiting] == ["b"]


def test_a_prefix_is_shared_and_its_last_token_still_run() -> None:
    scheduler = make_scheduler(budget=32)
    scheduler.add(make("a", 8))
    run(scheduler)
    scheduler.add(make("b", 8))  # the same prompt: two full blocks, of which one is shared
    scheduler.add(make("c", 11))  # goes on behind them: both are shared
    step = run(scheduler)
    assert shape(step) == [("a", 1), ("b", 4), ("c", 3)]
    a, b, c = scheduler.running
    assert (b.num_cached_tokens, c.num_cached_tokens) == (4, 8)
    assert b.block_table[:1] == a.block_table[:1]
    assert b.block_table[1] != a.block_table[1]
    assert c.block_table[:2] == a.block_table[:2]
    assert scheduler.counters.num_prefix_hit_tokens == 12


def test_a_prefix_is_not_shared_across_isolation_keys() -> None:
    scheduler = make_scheduler(budget=32)
    scheduler.add(make("a", 8, key="x"))
    run(scheduler)
    scheduler.add(make("b", 9, key="y"))
    run(scheduler)
    assert scheduler.running[1].num_cached_tokens == 0


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_finish_in_any_state_gives_the_blocks_back(num_steps: int) -> None:
    scheduler = make_scheduler(budget=4)
    sequence = make("a", 7)
    scheduler.add(sequence)
    for _ in range(num_steps):
        run(scheduler)
    scheduler.finish(sequence)
    scheduler.check_integrity()
    assert sequence.state is SequenceState.FINISHED
    assert scheduler.blocks.num_used == 0
    assert scheduler.num_live == 0


def test_admission_leaves_a_block_for_each_that_runs() -> None:
    scheduler = make_scheduler(num_blocks=4, budget=16)
    scheduler.add(make("a", 4))
    run(scheduler)
    scheduler.add(make("b", 12, first=50))  # three blocks are free, one of them for a
    assert shape(run(scheduler)) == [("a", 1)]
    assert scheduler.counters.num_preempted == 0


def test_a_prompt_that_is_not_through_yet_can_be_preempted() -> None:
    scheduler = make_scheduler(num_blocks=6, budget=2)
    scheduler.add(make("a", 3))
    run(scheduler)
    run(scheduler)
    scheduler.add(make("b", 16, first=50))  # four blocks; one token of it a step beside a's
    while len(scheduler.running[0].block_table) < 3 and scheduler.counters.num_preempted == 0:
        step = run(scheduler)
    assert shape(step) == [("a", 1)]
    assert scheduler.counters.num_preempted == 1
    assert [s.request_id for s in scheduler.waiting] == ["b"]
    assert scheduler.waiting[0].num_computed_tokens == 0


def test_the_same_prompt_is_computed_once() -> None:
    scheduler = make_scheduler(num_blocks=32, budget=6)
    for name in "abc":
        scheduler.add(make(name, 9))
    assert shape(run(scheduler)) == [("a", 6)]  # b and c wait for what a computes
    assert shape(run(scheduler)) == [("a", 3)]
    assert shape(run(scheduler)) == [("a", 1), ("b", 1), ("c", 1)]
    assert scheduler.counters.num_prefill_tokens == 11


def test_nobody_waits_for_a_prompt_that_was_given_up() -> None:
    scheduler = make_scheduler(num_blocks=32, budget=6)
    for name in "ab":
        scheduler.add(make(name, 9))
    assert shape(run(scheduler)) == [("a", 6)]
    scheduler.finish(scheduler.running[0])
    step = run(scheduler)
    assert shape(step) == [("b", 5)]  # the first block was through
    assert step.batch.spans[0].context_len == 4


def test_nobody_waits_where_prefixes_are_not_shared() -> None:
    scheduler = make_scheduler(budget=32)
    scheduler.add(make("a", 9, key="x"))
    scheduler.add(make("b", 9, key="y"))
    assert shape(run(scheduler)) == [("a", 9), ("b", 9)]


def test_a_head_drafts_for_sequences_whose_whole_prompt_it_knows() -> None:
    scheduler = make_scheduler(num_blocks=32, budget=16)
    scheduler.heads_changed(True)

    def computed(name: str, *, is_watched: bool) -> int:
        """Return how many tokens of the prompt were run, in a turn of its own."""
        sequence = make(name, 9)
        sequence.is_watched = is_watched
        scheduler.add(sequence)
        step = run(scheduler)
        scheduler.finish(sequence)
        return step.batch.spans[0].num_tokens

    assert computed("untold", is_watched=False) == 9
    assert computed("untold again", is_watched=False) == 1
    assert computed("the first that is told", is_watched=True) == 9
    assert computed("told again", is_watched=True) == 1
    assert computed("untold", is_watched=False) == 1
    scheduler.heads_changed(True)  # the new one knows nothing
    assert computed("untold", is_watched=False) == 1
    assert computed("told", is_watched=True) == 9
    scheduler.heads_changed(False)
    assert computed("told, but nobody listens", is_watched=True) == 1
