"""Decode steps in fixed memory, so that a GPU replays them as one graph.

A step of a small model is some two hundred launches; started one by one from Python they take
longer than they run. Where every sequence adds one token, steps differ by numbers alone: so the
numbers go to memory that is kept, the step is padded to one of a few sizes, and what was captured
of that size runs again.

Padded rows read and write a block of their own that no sequence has. Whatever does not fit (chunks,
drafts, hidden states that are asked for) is not for here: `takes` says so.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quickmatch.engine.attention import Attention
from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.decoder import StepInputs
from quickmatch.engine.gpu.lora import TritonAdapterSteps, TritonLoraStep
from quickmatch.engine.gpu.lora_tiles import lora_tiles
from quickmatch.engine.packing import IntPacker

Forward = Callable[[StepInputs], Tensor | None]
Step = Callable[[], Tensor]  # runs what it was made of, on what its memory holds now


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """Return the sizes that steps are padded to: 1, 2, 4, 8, 16, 24, 32, … max_num_seqs."""
    sizes = {1, 2, 4, *range(8, max_num_seqs, 8), max_num_seqs}
    return sorted(size for size in sizes if size <= max_num_seqs)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """How large steps become, and the block where padded rows write."""

    max_num_seqs: int
    max_model_len: int  # tokens
    block_size: int  # tokens
    scratch_block: int


class DecodeSteps:
    """Makes, keeps and runs the steps of one model. On a CPU they are run with no graph."""

    def __init__(
        self,
        forward: Forward,
        attention: Attention,
        adapters: TritonAdapterSteps,
        windows: frozenset[int | None],
        limits: StepLimits,
        *,
        device: torch.device,
    ) -> None:
        self._forward = forward
        self._attention = attention
        self._adapters = adapters
        self._windows = windows
        self._limits = limits
        self._device = device
        scratch = [limits.scratch_block]
        self._padding = [Span(r, 1, 0, scratch, -1, None) for r in range(limits.max_num_seqs)]
        self.sizes = bucket_sizes(limits.max_num_seqs)
        self._steps: dict[tuple[int, bool], Step] = {}
        self._num_first: dict[tuple[int, bool], int] = {}
        self._adapter_version = adapters.version
        num_numbers = self._most_numbers()
        is_gpu = device.type == "cuda"
        self._host = torch.empty(num_numbers, dtype=torch.int64, pin_memory=is_gpu)
        self._numbers = torch.zeros(num_numbers, dtype=torch.int64, device=device)
        self._copied = torch.cuda.Event() if is_gpu else None  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle() if is_gpu else None

    def _most_numbers(self) -> int:
        """Return how many numbers the largest step has: its lists, and full block tables."""
        limits, packer = self._limits, IntPacker()
        self._plan(self._padded(StepBatch([], [], [], []), limits.max_num_seqs), packer, True)
        blocks = -(-limits.max_model_len // limits.block_size) + 1
        return packer.num_first + limits.max_num_seqs * blocks

    def takes(self, batch: StepBatch, aux_layers: tuple[int, ...]) -> bool:
        """Whether a step can be run here: one token of each sequence, and nothing else."""
        num_seqs = len(batch.spans)
        return (
            not aux_layers
            and num_seqs == len(batch.token_ids)
            and num_seqs <= self._limits.max_num_seqs
            and all(span.tree is None for span in batch.spans)
        )

    def run(self, batch: StepBatch) -> Tensor:
        """Return the logits of every row, [num_seqs, vocab], until the next run."""
        num_seqs = len(batch.spans)
        size = self.sizes[bisect_left(self.sizes, num_seqs)]
        has_adapters = any(span.adapter_row >= 0 for span in batch.spans)
        return self._run(self._padded(batch, size), (size, has_adapters))[:num_seqs]

    def prepare(self) -> None:
        """Make the steps of all sizes for base rows now, so that no request waits for it."""
        for size in reversed(self.sizes):  # the largest first: the others fit into its memory
            self._run(self._padded(StepBatch([], [], [], []), size), (size, False))

    def _run(self, padded: StepBatch, key: tuple[int, bool]) -> Tensor:
        if self._adapter_version != self._adapters.version:
            self._steps = {known: step for known, step in self._steps.items() if not known[1]}
            self._adapter_version = self._adapters.version
        packer = IntPacker()
        make_inputs = self._plan(padded, packer, key[1])
        if self._copied is not None:
            self._copied.synchronize()  # the last step's numbers are on their way no more
        packer.run_into(self._host, self._numbers)
        if self._copied is not None:
            self._copied.record()
        if key not in self._steps:
            self._num_first[key] = packer.num_first
            self._steps[key] = self._make(make_inputs())
        if packer.num_first != self._num_first[key]:
            raise RuntimeError(
                f"a decode step of {key[0]} rows has {packer.num_first} numbers, not "
                f"{self._num_first[key]} as when it was made; report this as a bug"
            )
        return self._steps[key]()

    def _make(self, inputs: StepInputs) -> Step:
        def run() -> Tensor:
            logits = self._forward(inputs)
            assert logits is not None  # every row is asked for
            return logits

        if self._device.type != "cuda":
            return run
        return capture(run, self._pool)

    def _padded(self, batch: StepBatch, size: int) -> StepBatch:
        """Return the step with rows of no sequence behind its own."""
        limits, num = self._limits, len(batch.spans)
        missing = size - num
        slot = limits.scratch_block * limits.block_size
        return StepBatch(
            batch.token_ids + [0] * missing,
            batch.positions + [0] * missing,
            batch.slots + [slot] * missing,
            batch.spans + self._padding[num:size],
        )

    def _plan(
        self, padded: StepBatch, packer: IntPacker, has_adapters: bool
    ) -> Callable[[], StepInputs]:
        """List a step's numbers, always in the same order; return what makes its inputs of them."""
        token_ids, positions, slots = (
            packer.add(one) for one in (padded.token_ids, padded.positions, padded.slots)
        )
        plans = {
            window: self._attention.plan(padded, window, packer)
            for window in sorted(self._windows, key=lambda w: w or 0)
        }
        lora = None
        if has_adapters:
            tiles = lora_tiles(padded.spans, packer, fixed=len(padded.spans))
            lora = TritonLoraStep(self._adapters, tiles)
        return lambda: StepInputs(
            token_ids.tensor, positions.tensor, slots.tensor, None, plans, lora
        )


def capture(run: Callable[[], Tensor], pool: Any) -> Step:
    """Return a step that replays what `run` launches, from and to the memory that it used.

    It is run first: kernels that are compiled at their first use cannot be while capturing.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
