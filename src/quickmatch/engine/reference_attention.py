"""What attention over the paged cache is, written to be read: the reference.

One query at a time, in float32, with no batching and no kernel. Slow on purpose; every fast
implementation is held against it. See attention.py for the interface.
"""

import math
from typing import Any

import torch
from torch import Tensor

from quickmatch.engine.batch import StepBatch
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
                end = span.context_len + i + 1
                low = 0 if window is None else max(0, end - window)
                seen = slice(low, end)
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
