"""Attention of a step by Triton kernels (kernels/attention.py), behind attention.py's interface.

A step's spans are of three kinds, each with a launch of its own: single tokens, other short spans
and drafts, and chunks. Nothing is gathered and nothing padded: the kernels read the cache where it
lies, by the spans' block tables.

Sizes of tiles are fixed by head dimension and number format, not found by trial: a search would
fall into the first requests, and would find other sizes, hence other roundings, from run to run.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.gpu.kernels import attention as kernels
from quickmatch.engine.gpu.tiles import (
    BlockTables,
    ShortTiles,
    Tiles,
    chunk_tiles,
    is_short,
    short_tiles,
    single_tiles,
)
from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.packing import IntPacker

_LOG2_E = math.log2(math.e)
_LEAST_TOKENS = 256  # of context that are worth a part of their own
_MAX_SPLITS = 64
_PROGRAMS_A_PROCESSOR = 2  # to keep memory busy while one program waits


@dataclass(slots=True)
class _Plan:
    tables: BlockTables
    window: int | None
    short: list[ShortTiles] = field(default_factory=list)
    chunks: Tiles | None = None


@dataclass(frozen=True, slots=True)
class TileSize:
    """A kernel's shape: rows (queries times heads of a group), tokens, warps, stages of loads."""

    rows: int
    tokens: int
    num_warps: int
    num_stages: int


class TritonAttention:
    """One model's. num_processors: streaming multiprocessors of the device."""

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        block_size: int,
        *,
        num_processors: int,
    ) -> None:
        self._num_heads = num_heads
        self._num_kv_heads = num_kv_heads
        self._group = num_heads // num_kv_heads
        self._head_dim = head_dim
        self._block_dim = max(16, _power_of_two(head_dim))
        self._block_size = block_size
        self._num_processors = num_processors
        self._tables: tuple[IntPacker, BlockTables] | None = None  # of the step being planned

    def plan(self, batch: StepBatch, window: int | None, packer: IntPacker) -> _Plan:
        """See Attention.plan. A step's block tables are listed once, for all its windows."""
        tables = self._step_tables(batch, packer)
        plan = _Plan(tables, window)
        single: list[tuple[Span, int]] = []
        short: list[tuple[Span, int]] = []
        long: list[tuple[Span, int]] = []
        for span, start in zip(batch.spans, tables.starts, strict=True):
            kind = single if span.num_tokens == 1 else short if is_short(span) else long
            kind.append((span, start))
        if single:
            plan.short.append(single_tiles(single, window, packer))
        if short:
            plan.short.append(short_tiles(short, self._queries(self._short_rows()), window, packer))
        if long:
            rows = self.chunk_size(torch.bfloat16).rows
            plan.chunks = chunk_tiles(long, self._queries(rows), window, packer)
        return plan

    def plan_drafts(
        self, batch: StepBatch, window: int | None, packer: IntPacker, rows: int
    ) -> _Plan:
        """Plan a step of short spans as if each had so many rows, at most 32.

        How long its lists are follows from the number of spans and `rows`.
        """
        tables = self._step_tables(batch, packer)
        spans = list(zip(batch.spans, tables.starts, strict=True))
        queries = self._queries(self._short_rows())
        return _Plan(tables, window, [short_tiles(spans, queries, window, packer, rows=rows)])

    def _step_tables(self, batch: StepBatch, packer: IntPacker) -> BlockTables:
        if self._tables is None or self._tables[0] is not packer:
            self._tables = packer, BlockTables(batch.spans, self._block_size, packer)
        return self._tables[1]

    def _queries(self, rows: int) -> int:
        return max(1, rows // self._group)

    def _short_rows(self) -> int:
        return max(32, _power_of_two(self._group))

    def chunk_size(self, dtype: torch.dtype) -> TileSize:
        """Return the shape of chunks' tiles; rows are the same for every dtype."""
        rows = max(64 if self._block_dim > 128 else 128, _power_of_two(self._group))
        if dtype.itemsize > 2:
            return TileSize(rows, 32, 8, 2)
        if self._block_dim > 128:
            return TileSize(rows, 32, 8, 2)
        return TileSize(rows, 64, 8 if self._block_dim > 64 else 4, 3)

    def split_size(self, queries: int, dtype: torch.dtype) -> TileSize:
        """Return the shape of short spans' tiles of so many queries."""
        rows = max(16, _power_of_two(queries * self._group))
        tokens = 32 if self._block_dim > 128 or dtype.itemsize > 2 else 64
        # Half of the stages fetch blocks' numbers, for the addresses of the others.
        return TileSize(rows, tokens, 4, 5 if self._block_dim <= 128 else 3)

    def num_splits(self, tiles: Tiles) -> int:
        """Return into how many parts contexts are cut: a power of two, by the tiles alone.

        Not by how long the contexts are: a step that is replayed has others later.
        """
        programs = tiles.num_tiles * self._num_kv_heads
        wanted = -(-_PROGRAMS_A_PROCESSOR * self._num_processors // programs)
        splits = min(_MAX_SPLITS, _power_of_two(wanted))
        # Of drafts a power of four: they come in more sizes, and each number is compiled.
        return splits if tiles.queries == 1 else 1 << (splits.bit_length() & ~1)

    def run(self, plan: _Plan, layer: int, heads: Tensor, cache: KVCache) -> Tensor:
        """See Attention.run."""
        out = heads.new_empty(heads.shape[0], self._num_heads * self._head_dim)
        keys, values = cache.keys_and_values(layer)
        for tiles in plan.short:
            self._run_short(tiles, plan, heads, keys, values, out)
        if plan.chunks is not None:
            self._run_chunks(plan.chunks, plan, heads, keys, values, out)
        return out

    def _run_short(
        self,
        tiles: ShortTiles,
        plan: _Plan,
        heads: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
    ) -> None:
        size, splits = self.split_size(tiles.queries, heads.dtype), self.num_splits(tiles)
        parts = stats = out  # unused where there is one part
        if splits > 1:
            shape = (tiles.num_tiles * tiles.queries, self._num_heads, splits)
            parts = torch.empty(*shape, self._head_dim, dtype=torch.float32, device=out.device)
            stats = torch.empty(shape, dtype=torch.float32, device=out.device)
        kernels.split_attention[tiles.num_tiles, self._num_kv_heads, splits](
            heads, keys, values, out, parts, stats,
            tiles.fields.tensor, tiles.low.tensor, tiles.seen.tensor, plan.tables.blocks.tensor,
            self._head_dim**-0.5 * _LOG2_E, heads.stride(0), keys.stride(0),
            NUM_HEADS=self._num_heads, GROUP=self._group, HEAD_DIM=self._head_dim,
            BLOCK_SIZE=self._block_size, QUERIES=tiles.queries, WORDS=tiles.num_words,
            NUM_SPLITS=splits, LEAST=_LEAST_TOKENS,
            BLOCK_M=size.rows, BLOCK_N=size.tokens, BLOCK_D=self._block_dim,
            num_warps=size.num_warps, num_stages=size.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
        if splits > 1:
            kernels.merge_splits[tiles.num_tiles * tiles.queries, self._num_heads](
                parts, stats, out, tiles.fields.tensor,
                NUM_HEADS=self._num_heads, HEAD_DIM=self._head_dim, QUERIES=tiles.queries,
                NUM_SPLITS=splits, BLOCK_D=self._block_dim, num_warps=2,
                enable_fp_fusion=True,
            )  # fmt: skip

    def _run_chunks(
        self, tiles: Tiles, plan: _Plan, heads: Tensor, keys: Tensor, values: Tensor, out: Tensor
    ) -> None:
        size = self.chunk_size(heads.dtype)
        kernels.chunk_attention[tiles.num_tiles, self._num_kv_heads](
            heads, keys, values, out, tiles.fields.tensor, plan.tables.blocks.tensor,
            self._head_dim**-0.5 * _LOG2_E, heads.stride(0), keys.stride(0), plan.window or 0,
            NUM_HEADS=self._num_heads, GROUP=self._group, HEAD_DIM=self._head_dim,
            BLOCK_SIZE=self._block_size, HAS_WINDOW=plan.window is not None,
            BLOCK_M=size.rows, BLOCK_N=size.tokens, BLOCK_D=self._block_dim,
            num_warps=size.num_warps, num_stages=size.num_stages, enable_fp_fusion=True,
        )  # fmt: skip


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()
