"""What attention over the paged cache is, written to be read: the reference.

One query at a time, in float32, with no batching and no kernel. Slow on purpose; every fast
implementation is held against it. See attention.py for the interface.
"""

import math
from typing import Any

import torch
from torch import Tensor

from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.packing import IntPacker


class ReferenceAttention:
    """Defines what is right: one query at a time."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int) -> None:
        self._num_heads = num_heads
        self._num_kv_heads = num_kv_heads
        self._head_dim = head_dim
        self._block_size = block_size

    def plan(self, batch: StepBatch, window: int | None, packer: IntPacker) -> Any:
        """Keep each span with its blocks; nothing is prepared."""
        return [(span, packer.add(span.block_table), window) for span in batch.spans]

    def run(self, plan: Any, layer: int, heads: Tensor, cache: KVCache) -> Tensor:
        """See Attention.run."""
        out = torch.empty(heads.shape[0], self._num_heads * self._head_dim, dtype=heads.dtype)
        for span, blocks, window in plan:
            keys, values = cache.gather(layer, blocks.tensor, 1)  # [kv_heads, 1, slots, head_dim]
            for i in range(span.num_tokens):
                seen = _seen(span, i, window)
                row = heads[span.start + i, : self._num_heads].float()  # [heads, head_dim]
                out[span.start + i] = self._attend(row, keys[:, 0, seen], values[:, 0, seen])
        return out

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        group = self._num_heads // self._num_kv_heads
        outs = []
        for head in range(self._num_heads):
            scores = keys[head // group].float() @ query[head] / math.sqrt(self._head_dim)
            outs.append(scores.softmax(0) @ values[head // group].float())
        return torch.cat(outs)


def _seen(span: Span, row: int, window: int | None) -> list[int]:
    """Return where the KV lies that a row of the span sees, counted from the sequence's start."""
    position, own = (
        span.context_len + row,
        list(range(span.context_len, span.context_len + row + 1)),
    )
    if span.tree is not None and row > 0:
        path = span.tree.path(row - 1)
        position = span.context_len + len(path)
        own = [span.context_len, *(span.context_len + 1 + node for node in path)]
    placed = [*enumerate(range(span.context_len)), *enumerate(own, start=span.context_len)]
    low = 0 if window is None else position + 1 - window
    return [at for position_seen, at in placed if position_seen >= low]
