"""Decode steps in fixed memory: sizes, padding, what is taken, and where numbers lie."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.decoder import StepInputs
from quickmatch.engine.gpu.attention import TritonAttention
from quickmatch.engine.gpu.decode_steps import (
    DecodeSteps,
    StepKind,
    StepLimits,
    bucket_sizes,
    capture,
)
from quickmatch.engine.gpu.lora import TritonAdapterSteps
from quickmatch.engine.lora import LoraLayers, LowRank
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


def drafted(batch: StepBatch, nums_nodes: list[int]) -> StepBatch:
    """Give each sequence a chain of so many nodes, on blocks behind its own."""
    out = StepBatch([], [], [], [])
    for span, num in zip(batch.spans, nums_nodes, strict=True):
        first, own = span.context_len, span.block_table
        table = own + [own[-1] + 1 + i for i in range(num // 4 + 1)]
        tree = DraftTree.chain([201 + i for i in range(num)], [0.5] * num, 0) if num else None
        start = len(out.token_ids)
        out.spans.append(
            replace(span, start=start, num_tokens=1 + num, block_table=table, tree=tree)
        )
        out.token_ids += [batch.token_ids[span.start], *(tree.token_ids if tree else [])]
        out.positions += range(first, first + 1 + num)
        out.slots += [table[i // 4] * 4 + i % 4 for i in range(first, first + 1 + num)]
    return out


def run(steps: DecodeSteps, batch: StepBatch) -> list[float]:
    """Run a step and return what the recorder made of its token ids."""
    kind = steps.kind_of(batch)
    assert kind is not None
    out = steps.run(batch, list(range(len(batch.spans))), kind)
    assert out.logits is not None
    return out.logits[:, 0].tolist()


def test_sizes_grow_by_eights_to_the_limit() -> None:
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(3) == [1, 2, 3]
    assert bucket_sizes(30) == [1, 2, 4, 8, 16, 24, 30]
    assert bucket_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]


def test_rows_are_padded_and_answers_are_not() -> None:
    recorder = Recorder()
    steps, _ = steps_of(recorder)
    assert run(steps, decode([9, 2, 30])) == [100, 101, 102]
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
    run(steps, decode([9, 2, 30]))
    first = recorder.seen
    assert first is not None
    addresses = [first.slots.data_ptr(), first.plans[5].short[0].fields.tensor.data_ptr()]
    tables = first.plans[None].tables.blocks.tensor.data_ptr()
    assert run(steps, decode([63, 63, 63, 63])) == [100, 101, 102, 103]
    assert recorder.seen is first  # the same inputs, of which a graph would hold the addresses
    assert first.positions.tolist() == [63] * 4
    assert addresses == [first.slots.data_ptr(), first.plans[5].short[0].fields.tensor.data_ptr()]
    assert tables == first.plans[None].tables.blocks.tensor.data_ptr()
    assert run(steps, decode([1])) == [100]
    assert recorder.seen is not first


def test_steps_with_adapters_are_others_and_end_when_ranks_change() -> None:
    recorder = Recorder()
    steps, adapters = steps_of(recorder)
    a, b = torch.zeros(4, 8), torch.zeros(8, 4)
    adapters.put(0, [[LowRank(a, b)] * 4])
    run(steps, decode([3, 4]))
    base = recorder.seen
    run(steps, decode([3, 4], adapter=0))
    adapted = recorder.seen
    assert adapted is not None
    assert adapted.lora is not None
    adapters.put(1, [[LowRank(a, b)] * 4])
    run(steps, decode([5, 4], adapter=1))
    assert recorder.seen is adapted
    adapters.put(2, [[LowRank(torch.zeros(5, 8), torch.zeros(8, 5))] * 4])
    run(steps, decode([5, 4], adapter=2))
    assert recorder.seen is not adapted
    run(steps, decode([6, 4]))
    assert recorder.seen is base


def test_an_adapter_of_the_largest_rank_that_comes_back_ends_no_steps() -> None:
    recorder = Recorder()
    steps, adapters = steps_of(recorder)
    small: LoraLayers = [[LowRank(torch.zeros(4, 8), torch.zeros(8, 4))] * 4]
    large: LoraLayers = [[LowRank(torch.zeros(64, 8), torch.zeros(8, 64))] * 4]
    adapters.put(0, small)
    adapters.put(1, large)
    run(steps, decode([3, 4], adapter=0))
    made = recorder.seen
    adapters.drop(1)
    run(steps, decode([4, 5], adapter=0))
    assert recorder.seen is made
    adapters.put(1, large)
    run(steps, decode([5, 6], adapter=1))
    assert recorder.seen is made


def test_drafts_are_padded_to_rows_for_each_sequence() -> None:
    recorder = Recorder()
    steps, _ = steps_of(recorder)
    batch = drafted(decode([9, 2, 30]), [0, 2, 0])
    kind = steps.kind_of(batch)
    assert kind == StepKind(4, 4)
    out = steps.run(batch, [0, 2, 3, 4], kind)
    assert out.logits is not None
    seen = recorder.seen
    assert seen is not None
    assert seen.token_ids.view(4, 4).tolist() == [
        [100, 0, 0, 0],
        [101, 201, 202, 0],
        [102, 0, 0, 0],
        [0] * 4,
    ]
    assert seen.positions.view(4, 4)[1].tolist() == [2, 3, 4, 0]
    assert seen.slots.view(4, 4)[1].tolist() == [10 * 4 + 2, 10 * 4 + 3, 11 * 4, SCRATCH * 4]
    assert seen.sample_rows is not None
    assert seen.sample_rows.tolist()[:4] == [0, 5, 6, 8]
    assert len(out.logits) == 4


def test_what_is_taken_and_as_what() -> None:
    steps, _ = steps_of(Recorder(), max_num_seqs=16)
    assert steps.kind_of(decode([3, 4])) == StepKind(2, 1)
    assert steps.kind_of(decode([3, 4, 5], adapter=0), (1,)) == StepKind(4, 1, True, (1,))
    assert steps.kind_of(decode([3] * 17)) is None
    assert steps.kind_of(drafted(decode([3]), [31])) == StepKind(1, 32)
    assert steps.kind_of(drafted(decode([3]), [32])) is None
    assert steps.kind_of(drafted(decode([3] * 16), [1] * 15 + [20])) is None  # 16 times 32 rows
    chunk = StepBatch([1, 2], [0, 1], [0, 1], [Span(0, 2, 0, [0], -1, None)])
    assert steps.kind_of(chunk) is None


def test_all_sizes_can_be_made_beforehand() -> None:
    recorder = Recorder()
    steps, _ = steps_of(recorder)
    steps.prepare()
    assert set(steps._steps) == {StepKind(size, 1) for size in (1, 2, 4, 8)}


@pytest.mark.gpu
def test_a_captured_step_reads_what_its_memory_holds_now() -> None:
    numbers = torch.arange(4, device="cuda")
    step = capture(lambda: numbers * 2, torch.cuda.graph_pool_handle())
    assert step().tolist() == [0, 2, 4, 6]
    numbers.copy_(torch.tensor([5, 6, 7, 8]))
    assert step().tolist() == [10, 12, 14, 16]


@pytest.mark.gpu
def test_another_thread_may_allocate_while_a_step_is_captured() -> None:
    """As the reader does, of an adapter or a head that is loaded while requests run."""
    numbers = torch.arange(4, device="cuda")
    sizes = iter((1, 1, 300))  # run twice, then captured; MiB, more than the allocator has at hand

    def run() -> torch.Tensor:
        num_bytes = next(sizes) << 20
        with ThreadPoolExecutor(1) as reader:
            reader.submit(lambda: torch.zeros(num_bytes, dtype=torch.uint8).to("cuda")).result()
        return numbers * 2

    assert capture(run, torch.cuda.graph_pool_handle())().tolist() == [0, 2, 4, 6]
