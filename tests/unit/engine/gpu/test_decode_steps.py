"""Decode steps in fixed memory: sizes, padding, what is taken, and where numbers lie."""

import pytest
import torch

from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.decoder import StepInputs
from quickmatch.engine.gpu.attention import TritonAttention
from quickmatch.engine.gpu.decode_steps import DecodeSteps, StepLimits, bucket_sizes, capture
from quickmatch.engine.gpu.lora import TritonAdapterSteps
from quickmatch.engine.lora import LowRank
from quickmatch.engine.speculation.tree import DraftTree

CPU = torch.device("cpu")
SCRATCH = 50


class Recorder:
    """Stands where the decoder does: tells what a step's memory holds when it runs."""

    def __init__(self) -> None:
        self.num_made = 0
        self.seen: StepInputs | None = None

    def __call__(self, inputs: StepInputs) -> torch.Tensor:
        self.seen = inputs
        return inputs.token_ids[:, None].float()


def steps_of(recorder: Recorder, max_num_seqs: int = 8) -> tuple[DecodeSteps, TritonAdapterSteps]:
    adapters = TritonAdapterSteps(1, dtype=torch.float32, device=CPU)
    limits = StepLimits(
        max_num_seqs=max_num_seqs, max_model_len=64, block_size=4, scratch_block=SCRATCH
    )
    attention = TritonAttention(2, 1, 16, 4, num_processors=4)
    windows = frozenset({None, 5})
    return DecodeSteps(recorder, attention, adapters, windows, limits, device=CPU), adapters


def decode(contexts: list[int], adapter: int = -1) -> StepBatch:
    spans = [
        Span(i, 1, context, list(range(10 * i, 10 * i + context // 4 + 1)), adapter, None)
        for i, context in enumerate(contexts)
    ]
    slots = [span.block_table[-1] * 4 + span.context_len % 4 for span in spans]
    return StepBatch([100 + i for i in range(len(spans))], list(contexts), slots, spans)


def test_sizes_grow_by_eights_to_the_limit() -> None:
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(3) == [1, 2, 3]
    assert bucket_sizes(30) == [1, 2, 4, 8, 16, 24, 30]
    assert bucket_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]


def test_rows_are_padded_and_answers_are_not() -> None:
    recorder = Recorder()
    steps, _ = steps_of(recorder)
    logits = steps.run(decode([9, 2, 30]))
    assert logits[:, 0].tolist() == [100, 101, 102]
    seen = recorder.seen
    assert seen is not None
    assert seen.token_ids.tolist() == [100, 101, 102, 0]
    assert seen.positions.tolist() == [9, 2, 30, 0]
    assert seen.slots.tolist() == [2 * 4 + 1, 10 * 4 + 2, 27 * 4 + 2, SCRATCH * 4]
    assert set(seen.plans) == {None, 5}
    assert seen.sample_rows is None
    assert seen.lora is None


def test_a_second_step_of_a_size_finds_its_numbers_in_the_same_memory() -> None:
    recorder = Recorder()
    steps, _ = steps_of(recorder)
    steps.run(decode([9, 2, 30]))
    first = recorder.seen
    assert first is not None
    addresses = [first.slots.data_ptr(), first.plans[5].short[0].fields.tensor.data_ptr()]
    tables = first.plans[None].tables.blocks.tensor.data_ptr()
    logits = steps.run(decode([63, 63, 63, 63]))
    assert recorder.seen is first  # the same inputs, of which a graph would hold the addresses
    assert logits[:, 0].tolist() == [100, 101, 102, 103]
    assert first.positions.tolist() == [63] * 4
    assert addresses == [first.slots.data_ptr(), first.plans[5].short[0].fields.tensor.data_ptr()]
    assert tables == first.plans[None].tables.blocks.tensor.data_ptr()
    assert steps.run(decode([1]))[:, 0].tolist() == [100]
    assert recorder.seen is not first


def test_steps_with_adapters_are_others_and_end_when_ranks_change() -> None:
    recorder = Recorder()
    steps, adapters = steps_of(recorder)
    a, b = torch.zeros(4, 8), torch.zeros(8, 4)
    adapters.put(0, [[LowRank(a, b)] * 4])
    steps.run(decode([3, 4]))
    base = recorder.seen
    steps.run(decode([3, 4], adapter=0))
    adapted = recorder.seen
    assert adapted is not None
    assert adapted.lora is not None
    adapters.put(1, [[LowRank(a, b)] * 4])
    steps.run(decode([5, 4], adapter=1))
    assert recorder.seen is adapted
    adapters.put(2, [[LowRank(torch.zeros(5, 8), torch.zeros(8, 5))] * 4])
    steps.run(decode([5, 4], adapter=2))
    assert recorder.seen is not adapted
    steps.run(decode([6, 4]))
    assert recorder.seen is base


def test_only_single_tokens_are_taken() -> None:
    steps, _ = steps_of(Recorder(), max_num_seqs=2)
    assert steps.takes(decode([3, 4]), ())
    assert not steps.takes(decode([3, 4]), (1,))
    assert not steps.takes(decode([3, 4, 5]), ())
    drafted = decode([3])
    drafted.spans[0].tree = DraftTree()
    assert not steps.takes(drafted, ())
    chunk = StepBatch([1, 2], [0, 1], [0, 1], [Span(0, 2, 0, [0], -1, None)])
    assert not steps.takes(chunk, ())


def test_all_sizes_can_be_made_beforehand() -> None:
    recorder = Recorder()
    steps, _ = steps_of(recorder)
    steps.prepare()
    assert sorted(steps._steps) == [(size, False) for size in (1, 2, 4, 8)]


@pytest.mark.gpu
def test_a_captured_step_reads_what_its_memory_holds_now() -> None:
    numbers = torch.arange(4, device="cuda")
    step = capture(lambda: numbers * 2, torch.cuda.graph_pool_handle())
    assert step().tolist() == [0, 2, 4, 6]
    numbers.copy_(torch.tensor([5, 6, 7, 8]))
    assert step().tolist() == [10, 12, 14, 16]
