"""Attention over the paged KV cache, for a batch that mixes prefill chunks and decodes.

One interface, `Attention`: plan a step once, then run each layer by the plan. What is right is
defined by `ReferenceAttention` (reference_attention.py), against which every implementation is
tested on random batches. `TorchAttention` here is built from torch's own kernels and runs on any
device: all decodes of a step go through one product over their gathered blocks, padded to the
longest and masked; a first chunk attends to itself with no gather at all; a later chunk, or one
with a reused prefix, gathers its blocks.

Query heads of one key head are folded into the query length ([kv_heads, …, group * queries,
head_dim]), so that grouped-query attention needs no copies of the keys.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.packing import IntPacker, Packed

_PIECE_TOKENS = 128  # queries attended at once: the scores of more do not fit the caches


class Attention(Protocol):
    """What the decoder asks of an implementation."""

    def plan(self, batch: StepBatch, window: int | None, packer: IntPacker) -> Any:
        """Prepare one step for layers with this window; index lists go to the packer."""
        ...

    def run(self, plan: Any, layer: int, heads: Tensor, cache: KVCache) -> Tensor:
        """Attend. heads: [num_tokens, num_heads + 2 * num_kv_heads, head_dim], rotated; their
        keys and values are in the cache already. Returns [num_tokens, num_heads * head_dim].
        """
        ...


@dataclass(slots=True)
class _Decodes:
    """Spans of one token, batched: each row's blocks, padded to the longest row's."""

    rows: list[int]
    block_ids: Packed  # [len(rows) * num_blocks]
    low: Packed  # [len(rows)] first visible token of the gathered ones
    high: Packed  # [len(rows)] end of the visible tokens
    width: int  # gathered tokens a row: whole blocks
    row_ids: Packed
    mask: Tensor | None = None


@dataclass(slots=True)
class _Piece:
    """Some queries of a chunk, and the keys that any of them sees; bounds within the chunk's."""

    start: int
    end: int
    key_start: int
    key_end: int
    mask: Tensor  # [1, group * queries, keys]


@dataclass(slots=True)
class _Chunk:
    """A span of several tokens. `block_ids` is None for a first chunk, which needs no cache."""

    start: int
    num_tokens: int
    block_ids: Packed | None = None
    key_start: int = 0  # position of the first gathered token
    query_start: int = 0
    window: int | None = None
    pieces: list[_Piece] = field(default_factory=list)  # made with the first layer


@dataclass(slots=True)
class _Plan:
    num_tokens: int
    decodes: list[_Decodes] = field(default_factory=list)
    chunks: list[_Chunk] = field(default_factory=list)


class TorchAttention:
    """The fast implementation from torch's kernels; any device."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int) -> None:
        self._num_heads = num_heads
        self._num_kv_heads = num_kv_heads
        self._head_dim = head_dim
        self._block_size = block_size

    def plan(self, batch: StepBatch, window: int | None, packer: IntPacker) -> _Plan:
        """Sort the spans into batched decodes and single chunks."""
        plan = _Plan(len(batch.token_ids))
        decodes: list[Span] = []
        for span in batch.spans:
            if span.num_tokens == 1:
                decodes.append(span)
            else:
                plan.chunks.append(self._chunk(span, window, packer))
        for group in _groups_of_like_length(decodes):
            plan.decodes.append(self._decodes(group, window, packer))
        return plan

    def _decodes(self, spans: list[Span], window: int | None, packer: IntPacker) -> _Decodes:
        size = self._block_size
        tables, lows, highs = [], [], []
        for span in spans:
            end = span.context_len + 1
            low = 0 if window is None else max(0, end - window)
            first = low // size
            tables.append(span.block_table[first : (end - 1) // size + 1])
            lows.append(low - first * size)
            highs.append(end - first * size)
        num_blocks = max(map(len, tables))
        # Short rows are filled up with a block of their own, which the mask hides.
        flat = [b for t in tables for b in (*t, *(t[:1] * (num_blocks - len(t))))]
        rows = [span.start for span in spans]
        return _Decodes(
            rows=rows,
            block_ids=packer.add(flat),
            low=packer.add(lows),
            high=packer.add(highs),
            width=num_blocks * size,
            row_ids=packer.add(rows),
        )

    def _chunk(self, span: Span, window: int | None, packer: IntPacker) -> _Chunk:
        if span.context_len == 0 and (window is None or span.num_tokens <= window):
            return _Chunk(span.start, span.num_tokens)
        end = span.context_len + span.num_tokens
        low = 0 if window is None else max(0, span.context_len - window + 1)
        first = low // self._block_size
        table = span.block_table[first : (end - 1) // self._block_size + 1]
        return _Chunk(
            start=span.start,
            num_tokens=span.num_tokens,
            block_ids=packer.add(table),
            key_start=first * self._block_size,
            query_start=span.context_len,
            window=window,
        )

    def run(self, plan: _Plan, layer: int, heads: Tensor, cache: KVCache) -> Tensor:
        """See Attention.run."""
        parts = len(plan.decodes) + len(plan.chunks)
        width = self._num_heads * self._head_dim
        if parts == 1 and plan.decodes:
            return self._run_decodes(plan.decodes[0], layer, heads, cache).reshape(-1, width)
        if parts == 1:
            return self._run_chunk(plan.chunks[0], layer, heads, cache).reshape(-1, width)
        out = heads.new_empty(plan.num_tokens, width)
        for decodes in plan.decodes:
            rows = decodes.row_ids.tensor
            picked = self._run_decodes(decodes, layer, heads.index_select(0, rows), cache)
            out.index_copy_(0, rows, picked.reshape(-1, width))
        for chunk in plan.chunks:
            rows_of = slice(chunk.start, chunk.start + chunk.num_tokens)
            picked = self._run_chunk(chunk, layer, heads[rows_of], cache)
            out[rows_of] = picked.reshape(-1, width)
        return out

    def _run_decodes(self, decodes: _Decodes, layer: int, heads: Tensor, cache: KVCache) -> Tensor:
        """heads: [rows, …] of these rows only -> [rows, kv_heads, group, head_dim]."""
        num_rows = heads.shape[0]
        query = heads[:, : self._num_heads]
        query = query.reshape(num_rows, self._num_kv_heads, -1, self._head_dim).transpose(0, 1)
        keys, values = cache.gather(layer, decodes.block_ids.tensor, num_rows)
        if decodes.mask is None:
            decodes.mask = _decode_mask(decodes, self._num_kv_heads, heads)
        return attend(query, keys, values, decodes.mask).transpose(0, 1)

    def _run_chunk(self, chunk: _Chunk, layer: int, heads: Tensor, cache: KVCache) -> Tensor:
        """heads: [chunk's tokens, …] -> [chunk's tokens, num_heads, head_dim]."""
        by_head = heads.transpose(0, 1)  # [heads, tokens, head_dim]
        query = by_head[: self._num_heads]
        if chunk.block_ids is None:
            end = self._num_heads + self._num_kv_heads
            keys, values = by_head[self._num_heads : end], by_head[end:]
            keys, values = keys.contiguous(), values.contiguous()
        else:
            gathered = cache.gather(layer, chunk.block_ids.tensor, 1)
            keys, values = gathered[0].squeeze(1), gathered[1].squeeze(1)
        if not chunk.pieces:
            chunk.pieces = _pieces(chunk, self._num_heads // self._num_kv_heads, heads)
        outs = [self._run_piece(piece, query, keys, values) for piece in chunk.pieces]
        return torch.cat(outs, dim=1).transpose(0, 1)

    def _run_piece(self, piece: _Piece, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query: [num_heads, chunk's tokens, head_dim] -> [num_heads, piece's tokens, head_dim]."""
        asked = query[:, piece.start : piece.end]
        folded = asked.reshape(self._num_kv_heads, 1, -1, self._head_dim)
        seen = slice(piece.key_start, piece.key_end)
        out = attend(folded, keys[:, None, seen], values[:, None, seen], piece.mask)
        return out.reshape(asked.shape)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(query · keysᵀ / sqrt(head_dim) + mask) · values, over the last two dimensions.

    query: [kv_heads, rows, queries, head_dim]; keys, values: [kv_heads, rows, tokens, head_dim];
    mask: [kv_heads * rows or 1, queries or 1, tokens], added.

    In bfloat16 on CPUs, torch's fused kernel takes about seven times as long as two products
    and a softmax (measured: docs/lab-notes.md); elsewhere it is the faster one.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return _by_products(query, keys, values, mask)
    if mask is not None and mask.shape[0] > 1:
        mask = mask.view(*query.shape[:2], *mask.shape[1:])
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


def _by_products(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    flat = query.flatten(0, 1)  # [kv_heads * rows, queries, head_dim]
    transposed = keys.flatten(0, 1).transpose(1, 2)
    scale = query.shape[-1] ** -0.5
    if mask is None:
        scores = torch.bmm(flat, transposed).mul_(scale)
    else:
        scores = torch.baddbmm(mask, flat, transposed, alpha=scale)
    out = torch.bmm(scores.softmax(-1), values.flatten(0, 1))
    return out.view(query.shape)


def _groups_of_like_length(spans: list[Span]) -> list[list[Span]]:
    """One group, unless padding to the longest would more than double the work."""
    if not spans:
        return []
    lengths = [len(span.block_table) for span in spans]
    if len(spans) * max(lengths) <= 2 * sum(lengths):
        return [spans]
    groups: dict[int, list[Span]] = {}
    for span, length in zip(spans, lengths, strict=True):
        groups.setdefault(length.bit_length(), []).append(span)
    return list(groups.values())


def _decode_mask(decodes: _Decodes, num_kv_heads: int, like: Tensor) -> Tensor:
    """Return [num_kv_heads * rows, 1, width]: 0 where a row sees, -inf where not."""
    at = torch.arange(decodes.width, device=like.device)
    hidden = (at >= decodes.high.tensor[:, None]) | (at < decodes.low.tensor[:, None])
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, -math.inf)[:, None, :].repeat(num_kv_heads, 1, 1)


def _pieces(chunk: _Chunk, group: int, like: Tensor) -> list[_Piece]:
    """Cut a chunk's queries into pieces that look at no more keys than they may see."""
    pieces = []
    for start in range(0, chunk.num_tokens, _PIECE_TOKENS):
        end = min(start + _PIECE_TOKENS, chunk.num_tokens)
        first, last = chunk.query_start + start, chunk.query_start + end
        low = 0 if chunk.window is None else max(0, first - chunk.window + 1 - chunk.key_start)
        high = last - chunk.key_start
        mask = _piece_mask(chunk, (first, last), (low, high), like)
        pieces.append(_Piece(start, end, low, high, mask.repeat(1, group, 1)))
    return pieces


def _piece_mask(
    chunk: _Chunk, asked: tuple[int, int], seen: tuple[int, int], like: Tensor
) -> Tensor:
    """Return [1, queries, keys]: causal, and within the window."""
    keys = torch.arange(*seen, device=like.device) + chunk.key_start
    queries = torch.arange(*asked, device=like.device)[:, None]
    hidden = keys > queries
    if chunk.window is not None:
        hidden |= keys <= queries - chunk.window
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, -math.inf)[None]
