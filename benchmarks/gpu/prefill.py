"""Attention of one long prompt: ours over the paged cache, beside SDPA on tensors that lie ready.

SDPA is the best that torch has, FlashAttention's or cuDNN's kernel, on keys and values that lie one
behind the other. Ours reads them by block tables from where a server keeps them.
"""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.engine.contenders import OURS
from benchmarks.gpu.card import seconds
from benchmarks.gpu.figures import SDPA
from benchmarks.models import Shape
from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.gpu.attention import TritonAttention
from quickmatch.engine.gpu.triton_pass import num_processors
from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.model_config import ModelConfig, RopeConfig
from quickmatch.engine.packing import IntPacker

BLOCK_SIZE = 16


class PrefillCase:
    """One prompt of a length, in one chunk: its queries, keys and values, for both."""

    def __init__(
        self, shape: Shape, length: int, *, device: torch.device, dtype: torch.dtype, seed: int = 0
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        num_lines = shape.num_heads + 2 * shape.num_kv_heads
        size = (length, num_lines, shape.head_dim)
        self._heads = torch.randn(size, generator=generator, device=device).to(dtype)
        self._num_heads, self._num_kv_heads = shape.num_heads, shape.num_kv_heads
        num_blocks = -(-length // BLOCK_SIZE)
        blocks = list(range(num_blocks))
        random.Random(seed).shuffle(blocks)  # as in a server that has run for a while
        self._cache = KVCache(_one_layer(shape), num_blocks, BLOCK_SIZE, dtype=dtype, device=device)
        at = torch.arange(length)
        slots = torch.tensor(blocks)[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE
        self._cache.write(0, slots.to(device), self._heads[:, shape.num_heads :])
        sizes = (shape.num_heads, shape.num_kv_heads, shape.head_dim, BLOCK_SIZE)
        self._attention = TritonAttention(*sizes, num_processors=num_processors(device))
        batch = StepBatch([0] * length, [], [], [Span(0, length, 0, blocks, -1, None)])
        packer = IntPacker()
        self._plan = self._attention.plan(batch, None, packer)
        packer.run(device)
        by_head = self._heads.transpose(0, 1).contiguous()[None]  # [1, heads, length, head_dim]
        self._query = by_head[:, : shape.num_heads]
        self._keys = by_head[:, shape.num_heads : -shape.num_kv_heads].contiguous()
        self._values = by_head[:, -shape.num_kv_heads :].contiguous()

    def ours(self) -> Tensor:
        """Return [length, num_heads * head_dim]."""
        return self._attention.run(self._plan, 0, self._heads, self._cache)

    def sdpa(self) -> Tensor:
        """Return the same by torch's own."""
        out = F.scaled_dot_product_attention(
            self._query, self._keys, self._values, is_causal=True, enable_gqa=True
        )
        return out[0].transpose(0, 1).flatten(1)


def take_turns(
    case: PrefillCase, device: torch.device, *, repetitions: int
) -> dict[str, list[float]]:
    """Return the milliseconds of each, turn by turn; the first turns do not count."""
    works: dict[str, Callable[[], Tensor]] = {OURS: case.ours, SDPA: case.sdpa}
    for work in works.values():
        seconds(work, device)
        seconds(work, device)
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            taken[name].append(seconds(work, device) * 1e3)
    return taken


def _one_layer(shape: Shape) -> ModelConfig:
    return ModelConfig(
        architecture=shape.architecture,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_layers=1,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_model_len=shape.max_len,
        rms_norm_eps=1e-5,
        rope=RopeConfig(),
        windows=(None,),
    )
