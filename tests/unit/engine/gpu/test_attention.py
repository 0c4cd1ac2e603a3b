"""Triton's attention against the reference, on random mixed batches over scrambled blocks."""

import random

import pytest
import torch

from quickmatch.engine.attention import Attention
from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.gpu import attention as gpu_attention
from quickmatch.engine.gpu.attention import TritonAttention
from quickmatch.engine.gpu.tiles import WORD_BITS
from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.packing import IntPacker
from quickmatch.engine.reference_attention import ReferenceAttention
from tests.unit.engine.test_attention import (
    CPU,
    NUM_BLOCKS,
    attend,
    config_of,
    random_batch,
    random_tree,
)

EXACT = {"rtol": 1e-4, "atol": 1e-4}
ROUGH = {"rtol": 0, "atol": 0.05}


class Case:
    """A batch with a cache full of numbers, and what each attention makes of it."""

    def __init__(
        self,
        batch: StepBatch,
        shape: tuple[int, int, int],
        *,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        num_heads, num_kv_heads, head_dim = shape
        self.batch, self.shape, self.sizes = batch, shape, (*shape, block_size)
        num_tokens = len(batch.token_ids)
        num_slots = NUM_BLOCKS * block_size
        old = torch.randn(num_slots, 2 * num_kv_heads, head_dim, generator=generator)
        self.old = old.to(dtype)
        num_lines = num_heads + 2 * num_kv_heads
        self.heads = torch.randn(num_tokens, num_lines, head_dim, generator=generator).to(dtype)

    def cache(self, device: torch.device) -> KVCache:
        block_size = self.sizes[3]
        cache = KVCache(
            config_of(*self.shape), NUM_BLOCKS, block_size, dtype=self.heads.dtype, device=device
        )
        cache.write(1, torch.arange(len(self.old), device=device), self.old.to(device))
        new = self.heads[:, self.shape[0] :].to(device)
        cache.write(1, torch.tensor(self.batch.slots, device=device), new)
        return cache

    def right(self, window: int | None) -> torch.Tensor:
        attention = ReferenceAttention(*self.sizes)
        return attend(attention, self.batch, window, self.heads, self.cache(CPU))

    def got(self, window: int | None, device: torch.device, processors: int = 8) -> torch.Tensor:
        attention: Attention = TritonAttention(*self.sizes, num_processors=processors)
        packer = IntPacker()
        plan = attention.plan(self.batch, window, packer)
        packer.run(device)
        out = attention.run(plan, 1, self.heads.to(device), self.cache(device))
        return out.to(CPU)


def batch_of(spans: list[tuple[int, int]], block_size: int = 16) -> StepBatch:
    """(context, new tokens) of each; blocks from the end of the cache to its start."""
    blocks = iter(range(NUM_BLOCKS - 1, -1, -1))
    batch = StepBatch([], [], [], [])
    for context, new in spans:
        table = [next(blocks) for _ in range(-(-(context + new) // block_size))]
        batch.spans.append(Span(len(batch.token_ids), new, context, table, -1, None))
        batch.token_ids += [0] * new
        batch.positions += range(context, context + new)
        batch.slots += [
            table[i // block_size] * block_size + i % block_size
            for i in range(context, context + new)
        ]
    return batch


@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("shape", [(4, 4, 16), (6, 2, 64), (3, 1, 96)])
def test_mixed_batches_are_the_reference(
    shape: tuple[int, int, int], window: int | None, device: torch.device
) -> None:
    for seed in range(2):
        chance = random.Random(seed)
        block_size = chance.choice([1, 4, 16])
        case = Case(random_batch(chance, block_size), shape, block_size=block_size, seed=seed)
        torch.testing.assert_close(case.got(window, device), case.right(window), **EXACT)


# The interpreter multiplies the bits of bfloat16 as if they were whole numbers.
@pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
)
def test_half_precision_is_near_the_reference(dtype: torch.dtype, device: torch.device) -> None:
    for seed in range(2):
        batch = random_batch(random.Random(seed), 16)
        case = Case(batch, (4, 2, 64), dtype=dtype, seed=seed)
        torch.testing.assert_close(case.got(None, device), case.right(None), **ROUGH)


@pytest.mark.parametrize("processors", [1, 8, 96])
@pytest.mark.parametrize("window", [None, 200])
def test_long_contexts_are_cut_into_parts(
    window: int | None,
    processors: int,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many parts there are, and whichever of them hold nothing."""
    monkeypatch.setattr(gpu_attention, "_LEAST_TOKENS", 48)
    case = Case(batch_of([(500, 1), (3, 1), (260, 5), (0, 1)]), (4, 2, 32))
    got = case.got(window, device, processors)
    torch.testing.assert_close(got, case.right(window), **EXACT)


@pytest.mark.parametrize("window", [None, 70])
def test_a_long_chunk_takes_several_tiles(window: int | None, device: torch.device) -> None:
    case = Case(batch_of([(37, 300), (0, 130)]), (4, 2, 16))
    torch.testing.assert_close(case.got(window, device), case.right(window), **EXACT)


@pytest.mark.parametrize("window", [None, 3])
def test_a_tree_may_have_more_nodes_than_a_word_has_bits(
    window: int | None, device: torch.device
) -> None:
    batch = batch_of([(20, 2 * WORD_BITS), (9, 1)])
    batch.spans[0].tree = random_tree(random.Random(5), 2 * WORD_BITS - 1)
    case = Case(batch, (2, 1, 16))
    torch.testing.assert_close(case.got(window, device), case.right(window), **EXACT)


def test_two_windows_of_a_step_share_the_block_tables() -> None:
    attention = TritonAttention(4, 2, 16, 16, num_processors=8)
    batch, packer = batch_of([(40, 1), (7, 1)]), IntPacker()
    first = attention.plan(batch, None, packer)
    assert attention.plan(batch, 6, packer).tables is first.tables
    assert attention.plan(batch, None, IntPacker()).tables is not first.tables


def test_the_number_of_parts_fills_the_processors_and_no_more() -> None:
    attention = TritonAttention(32, 8, 64, 16, num_processors=132)
    for num_seqs, splits in ((1, 64), (8, 8), (64, 1)):
        plan = attention.plan(batch_of([(40, 1)] * num_seqs), None, IntPacker())
        assert attention.num_splits(plan.short[0]) == splits
