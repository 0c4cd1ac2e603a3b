"""Decode steps in fixed memory, so that a GPU replays them as one graph.

A step of a small model is some two hundred launches; started one by one from Python they take
longer than they run. Where every sequence adds one token, steps differ by numbers alone: so the
numbers go to memory that is kept, the step is padded to one of a few sizes, and what was captured
of that size runs again. Steps with drafts are padded to a number of rows for each sequence, too.

Padded rows read and write a block of their own that no sequence has. What does not fit, as chunks
of prompts do not, is not for here: `kind_of` says so.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.decoder import StepInputs
from quickmatch.engine.forward_pass import PassOutput
from quickmatch.engine.gpu.attention import TritonAttention
from quickmatch.engine.gpu.lora import TritonAdapterSteps, TritonLoraStep
from quickmatch.engine.gpu.lora_tiles import lora_tiles
from quickmatch.engine.packing import IntPacker, Packed

Forward = Callable[[StepInputs], Tensor | None]
Answer = tuple[Tensor, list[Tensor]]  # logits, and hidden states; in memory that is kept
Step = Callable[[], Answer]  # runs what it was made of, on what its memory holds now

_DRAFT_ROWS = (2, 4, 8, 16, 32)  # of each sequence, the last token among them
_MOST_DRAFT_ROWS = 256  # of a step; more are launched one by one and take longer anyway


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """Return the sizes that steps are padded to: 1, 2, 4, 8, 16, 24, 32, … max_num_seqs."""
    sizes = {1, 2, 4, *range(8, max_num_seqs, 8), max_num_seqs}
    return sorted(size for size in sizes if size <= max_num_seqs)


@dataclass(frozen=True, slots=True)
class StepKind:
    """What a step is padded to, and what else tells it from others."""

    size: int  # sequences
    rows: int  # of each
    has_adapters: bool = False
    aux_layers: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the whole step."""
        return self.size * self.rows


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
        attention: TritonAttention,
        adapters: TritonAdapterSteps,
        windows: frozenset[int | None],
        limits: StepLimits,
        *,
        device: torch.device,
    ) -> None:
        self._forward = forward
        self._attention = attention
        self._adapters = adapters
        self._windows = sorted(windows, key=lambda window: window or 0)
        self._limits = limits
        self._device = device
        scratch = [limits.scratch_block]
        self._padding = [Span(r, 1, 0, scratch, -1, None) for r in range(limits.max_num_seqs)]
        self.sizes = bucket_sizes(limits.max_num_seqs)
        self._steps: dict[StepKind, tuple[Step, int]] = {}  # with how many numbers it was made for
        self._adapter_version = adapters.version
        num_numbers = self._most_numbers()
        is_gpu = device.type == "cuda"
        self._host = torch.empty(num_numbers, dtype=torch.int64, pin_memory=is_gpu)
        self._numbers = torch.zeros(num_numbers, dtype=torch.int64, device=device)
        self._copied = torch.cuda.Event() if is_gpu else None  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle() if is_gpu else None

    def _most_numbers(self) -> int:
        """Return how many numbers the largest step has: its lists, and full block tables."""
        most = 0
        for rows in (1, *_DRAFT_ROWS):
            fitting = [n for n in self.sizes if rows == 1 or n * rows <= _MOST_DRAFT_ROWS]
            packer = IntPacker()
            self._plan(_nothing(), StepKind(max(fitting), rows, True), [], packer)
            most = max(most, packer.num_first)
        blocks = -(-self._limits.max_model_len // self._limits.block_size) + 1
        return most + self._limits.max_num_seqs * blocks

    def kind_of(self, batch: StepBatch, aux_layers: tuple[int, ...] = ()) -> StepKind | None:
        """Return what a step is run as here; None if it is none of single tokens and drafts."""
        num_seqs, rows = len(batch.spans), 1
        if num_seqs > self._limits.max_num_seqs:
            return None
        if num_seqs != len(batch.token_ids):
            if any(span.num_tokens > 1 and span.tree is None for span in batch.spans):
                return None
            longest = max(span.num_tokens for span in batch.spans)
            rows = next((r for r in _DRAFT_ROWS if r >= longest), 0)
        size = self.sizes[bisect_left(self.sizes, num_seqs)]
        if rows == 0 or (rows > 1 and size * rows > _MOST_DRAFT_ROWS):
            return None
        has_adapters = any(span.adapter_row >= 0 for span in batch.spans)
        return StepKind(size, rows, has_adapters, aux_layers)

    def run(self, batch: StepBatch, wanted: list[int], kind: StepKind) -> PassOutput:
        """Run a step of a kind that `kind_of` gave; see ForwardPass.run."""
        num_rows = len(batch.token_ids)
        (logits, aux), real = self._run(batch, kind, wanted)
        if kind.rows > 1:
            aux = [one.index_select(0, real.tensor[:num_rows]) for one in aux]
            return PassOutput(logits[: len(wanted)] if wanted else None, aux)
        aux = [one[:num_rows].clone() for one in aux]  # some of it is kept from step to step
        if not wanted:
            return PassOutput(None, aux)
        is_whole = wanted == list(range(num_rows))
        return PassOutput(logits[:num_rows] if is_whole else logits[wanted], aux)

    def prepare(self) -> None:
        """Make the steps of all sizes for base rows now, so that no request waits for it."""
        for size in reversed(self.sizes):  # the largest first: the others fit into its memory
            self._run(_nothing(), StepKind(size, 1), [])

    def _run(self, batch: StepBatch, kind: StepKind, wanted: list[int]) -> tuple[Answer, Packed]:
        if self._adapter_version != self._adapters.version:
            self._steps = {one: step for one, step in self._steps.items() if not one.has_adapters}
            self._adapter_version = self._adapters.version
        packer = IntPacker()
        make_inputs, real = self._plan(batch, kind, wanted, packer)
        if self._copied is not None:
            self._copied.synchronize()  # the last step's numbers are on their way no more
        packer.run_into(self._host, self._numbers)
        if self._copied is not None:
            self._copied.record()
        if kind not in self._steps:
            self._steps[kind] = self._make(make_inputs()), packer.num_first
        step, num_first = self._steps[kind]
        if packer.num_first != num_first:
            raise RuntimeError(
                f"a step of {kind} has {packer.num_first} numbers, not {num_first} as when it was "
                "made; report this as a bug"
            )
        return step(), real

    def _make(self, inputs: StepInputs) -> Step:
        def run() -> Answer:
            inputs.aux.clear()
            logits = self._forward(inputs)
            assert logits is not None  # some rows are asked for
            return logits, inputs.aux

        if self._device.type != "cuda":
            return run
        return capture(run, self._pool)

    def _plan(
        self, batch: StepBatch, kind: StepKind, wanted: list[int], packer: IntPacker
    ) -> tuple[Callable[[], StepInputs], Packed]:
        """List a step's numbers, always in the same order.

        Returns what makes its inputs of them, and where the batch's own rows lie in the step.
        """
        padded, places = self._padded(batch, kind)
        token_ids, positions, slots = (
            packer.add(one) for one in (padded.token_ids, padded.positions, padded.slots)
        )
        is_draft = kind.rows > 1
        real, rows = packer.add([]), None
        if is_draft:
            real = packer.add(places + [0] * (kind.num_rows - len(places)))
            chosen = [places[row] for row in wanted]
            rows = packer.add(chosen + [0] * (kind.num_rows - len(chosen)))
        plans = {
            window: self._attention.plan_drafts(padded, window, packer, kind.rows)
            if is_draft
            else self._attention.plan(padded, window, packer)
            for window in self._windows
        }
        lora = None
        if kind.has_adapters:
            tiles = lora_tiles(padded.spans, packer, fixed=kind.num_rows)
            lora = TritonLoraStep(self._adapters, tiles)

        def make_inputs() -> StepInputs:
            numbers = token_ids.tensor, positions.tensor, slots.tensor
            asked = None if rows is None else rows.tensor
            return StepInputs(*numbers, asked, plans, lora, kind.aux_layers)

        return make_inputs, real

    def _padded(self, batch: StepBatch, kind: StepKind) -> tuple[StepBatch, list[int]]:
        """Return the step with rows of no sequence, and where in it the batch's own rows lie."""
        limits, num = self._limits, len(batch.spans)
        slot = limits.scratch_block * limits.block_size
        if kind.rows == 1:
            missing = kind.size - num
            padded = StepBatch(
                batch.token_ids + [0] * missing,
                batch.positions + [0] * missing,
                batch.slots + [slot] * missing,
                batch.spans + self._padding[num : kind.size],
            )
            return padded, []
        places: list[int] = []
        spans: list[Span] = []
        for index, one in enumerate(batch.spans + self._padding[num : kind.size]):
            start = index * kind.rows
            spans.append(replace(one, start=start))
            if index < num:
                places += range(start, start + one.num_tokens)
        ids, positions, slots = [0] * kind.num_rows, [0] * kind.num_rows, [slot] * kind.num_rows
        for row, place in enumerate(places):
            ids[place] = batch.token_ids[row]
            positions[place], slots[place] = batch.positions[row], batch.slots[row]
        return StepBatch(ids, positions, slots, spans), places


def _nothing() -> StepBatch:
    return StepBatch([], [], [], [])


_T = TypeVar("_T")


def capture(run: Callable[[], _T], pool: Any) -> Callable[[], _T]:
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
    # Another thread may be reading an adapter or a head into the card's memory meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        out = run()

    def replay() -> _T:
        graph.replay()
        return out

    return replay
