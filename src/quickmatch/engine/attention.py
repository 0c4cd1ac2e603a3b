"""Attention over the paged KV cache, for a batch that mixes prefill chunks, decodes and drafts.

One interface, `Attention`: plan a step once, then run each layer by the plan. What is right is
defined by `ReferenceAttention` (reference_attention.py), against which every implementation is
tested on random batches. `TorchAttention` here is built from torch's own kernels and runs on any
device: all short spans of a step (decodes, draft trees, last bits of prompts) go through one
product over their gathered blocks, padded and masked (attention_groups.py); a first chunk attends
to itself with no gather at all; a later chunk, or one with a reused prefix, gathers its blocks.

Query heads of one key head are folded into the query length ([kv_heads, …, group * queries,
head_dim]), so that grouped-query attention needs no copies of the keys.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from quickmatch.engine.attention_groups import (
    SHORT_TOKENS,
    SpanGroup,
    group_mask,
    groups_of_like_size,
    plan_group,
)
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
class _Piece:
    """Some queries of a chunk, and the keys that any of them sees; bounds within the chunk's."""

    start: int
    end: int
    key_start: int
    key_end: int
    mask: Tensor  # [1, group * queries, keys]


@dataclass(slots=True)
class _Chunk:
    """A span of many tokens. `block_ids` is None for a first chunk, which needs no cache."""

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
    groups: list[SpanGroup] = field(default_factory=list)
    chunks: list[_Chunk] = field(default_factory=list)


class TorchAttention:
    """The fast implementation from torch's kernels; any device."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int) -> None:
        self._num_heads = num_heads
        self._num_kv_heads = num_kv_heads
        self._head_dim = head_dim
        self._block_size = block_size

    def plan(self, batch: StepBatch, window: int | None, packer: IntPacker) -> _Plan:
        """Sort the spans into groups of short ones and single chunks."""
        plan = _Plan(len(batch.token_ids))
        short: list[Span] = []
        for span in batch.spans:
            if span.tree is not None or span.num_tokens <= SHORT_TOKENS:
                short.append(span)
            else:
                plan.chunks.append(self._chunk(span, window, packer))
        for spans in groups_of_like_size(short):
            plan.groups.append(plan_group(spans, self._block_size, window, packer))
        return plan

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
        width = self._num_heads * self._head_dim
        if len(plan.groups) == 1 and not plan.chunks:
            group = plan.groups[0]  # all rows of the step, in order
            if group.unpadded is not None:
                heads = heads.index_select(0, group.query_rows.tensor)
            return self._run_group(group, layer, heads, cache)
        if len(plan.chunks) == 1 and not plan.groups:
            return self._run_chunk(plan.chunks[0], layer, heads, cache).reshape(-1, width)
        out = heads.new_empty(plan.num_tokens, width)
        for group in plan.groups:
            picked = heads.index_select(0, group.query_rows.tensor)
            out.index_copy_(0, group.rows.tensor, self._run_group(group, layer, picked, cache))
        for chunk in plan.chunks:
            rows_of = slice(chunk.start, chunk.start + chunk.num_tokens)
            picked = self._run_chunk(chunk, layer, heads[rows_of], cache)
            out[rows_of] = picked.reshape(-1, width)
        return out

    def _run_group(self, group: SpanGroup, layer: int, heads: Tensor, cache: KVCache) -> Tensor:
        """heads: [num_spans * num_queries, …] -> [rows of the group, num_heads * head_dim]."""
        num_spans, num_queries, dim = group.num_spans, group.num_queries, self._head_dim
        shape = (num_spans, num_queries, self._num_kv_heads, -1, dim)
        query = heads[:, : self._num_heads].reshape(shape).permute(2, 0, 3, 1, 4)
        query = query.reshape(self._num_kv_heads, num_spans, -1, dim)  # group before queries
        keys, values = cache.gather(layer, group.block_ids.tensor, num_spans)
        if group.mask is None:
            fold = self._num_heads // self._num_kv_heads
            group.mask = group_mask(group, heads).repeat(self._num_kv_heads, fold, 1)
        out = attend(query, keys, values, group.mask)
        out = out.view(self._num_kv_heads, num_spans, -1, num_queries, dim)
        out = out.permute(1, 3, 0, 2, 4).reshape(num_spans * num_queries, -1)
        return out if group.unpadded is None else out.index_select(0, group.unpadded.tensor)

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
