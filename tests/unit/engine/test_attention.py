"""The fast attention against the reference, on random mixed batches over scrambled blocks."""

import random

import pytest
import torch

from quickmatch.engine.attention import Attention, TorchAttention
from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.model_config import ModelConfig, RopeConfig
from quickmatch.engine.packing import IntPacker
from quickmatch.engine.precision import cpu_has
from quickmatch.engine.reference_attention import ReferenceAttention
from quickmatch.engine.speculation.tree import DraftTree, Source

CPU = torch.device("cpu")
NUM_BLOCKS = 512


def config_of(num_heads: int, num_kv_heads: int, head_dim: int) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_layers=2,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_model_len=64,
        rms_norm_eps=1e-6,
        rope=RopeConfig(),
        windows=(None, None),
    )


def random_tree(chance: random.Random, num_nodes: int) -> DraftTree:
    tree = DraftTree()
    for node in range(num_nodes):
        tree.add(node, chance.randint(-1, node - 1), 0.5, Source.HEAD)
    return tree


def random_batch(chance: random.Random, block_size: int) -> StepBatch:
    """Decodes, draft trees, first and later chunks in random order, each on blocks of its own."""
    blocks = list(range(NUM_BLOCKS))
    chance.shuffle(blocks)
    batch = StepBatch([], [], [], [])
    for _ in range(chance.randint(1, 7)):
        context = chance.choice([0, 0, chance.randint(1, 30)])
        new = chance.choice([1, 1, chance.randint(2, 9), chance.randint(33, 40)])
        table = [blocks.pop() for _ in range(-(-(context + new) // block_size))]
        tree = random_tree(chance, new - 1) if 1 < new < 10 and chance.random() < 0.7 else None
        batch.spans.append(Span(len(batch.token_ids), new, context, table, -1, None, tree))
        for i in range(context, context + new):
            batch.token_ids.append(0)
            batch.positions.append(i)
            batch.slots.append(table[i // block_size] * block_size + i % block_size)
    return batch


def attend(
    attention: Attention, batch: StepBatch, window: int | None, heads: torch.Tensor, cache: KVCache
) -> torch.Tensor:
    packer = IntPacker()
    plan = attention.plan(batch, window, packer)
    packer.run(CPU)
    return attention.run(plan, 1, heads, cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("shape", [(4, 4, 8), (6, 2, 16), (8, 1, 8)])
def test_torch_attention_is_the_reference(
    shape: tuple[int, int, int], window: int | None, dtype: torch.dtype
) -> None:
    exactness = (
        {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0, "atol": 0.05}
    )
    num_heads, num_kv_heads, head_dim = shape
    generator = torch.Generator().manual_seed(1)
    for seed in range(12):
        chance = random.Random(seed)
        block_size = chance.choice([1, 4, 16])
        batch = random_batch(chance, block_size)
        cache = KVCache(config_of(*shape), NUM_BLOCKS, block_size, dtype=dtype, device=CPU)
        everywhere = torch.arange(NUM_BLOCKS * block_size)
        old = torch.randn(len(everywhere), 2 * num_kv_heads, head_dim, generator=generator)
        cache.write(1, everywhere, old.to(dtype))
        heads = torch.randn(
            len(batch.token_ids), num_heads + 2 * num_kv_heads, head_dim, generator=generator
        ).to(dtype)
        cache.write(1, torch.tensor(batch.slots), heads[:, num_heads:])
        sizes = (num_heads, num_kv_heads, head_dim, block_size)
        right = attend(ReferenceAttention(*sizes), batch, window, heads, cache)
        got = attend(TorchAttention(*sizes), batch, window, heads, cache)
        torch.testing.assert_close(got, right, **exactness)


def test_a_long_chunk_is_attended_in_pieces() -> None:
    """Queries are taken a piece at a time, each against the keys that it may see."""
    generator = torch.Generator().manual_seed(3)
    cache = KVCache(config_of(4, 2, 8), NUM_BLOCKS, 16, dtype=torch.float32, device=CPU)
    old = torch.randn(NUM_BLOCKS * 16, 4, 8, generator=generator)
    cache.write(1, torch.arange(NUM_BLOCKS * 16), old)
    num_tokens, context = 300, 37
    span = Span(0, num_tokens, context, list(range(NUM_BLOCKS)), -1, None)
    batch = StepBatch([0] * num_tokens, [0] * num_tokens, [0] * num_tokens, [span])
    heads = torch.randn(num_tokens, 8, 8, generator=generator)
    cache.write(1, torch.arange(context, context + num_tokens), heads[:, 4:])
    for window in (None, 70):
        right = attend(ReferenceAttention(4, 2, 8, 16), batch, window, heads, cache)
        got = attend(TorchAttention(4, 2, 8, 16), batch, window, heads, cache)
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


def test_a_large_tree_is_no_chunk() -> None:
    """Its nodes see their ancestors alone, however many rows it has."""
    generator = torch.Generator().manual_seed(4)
    cache = KVCache(config_of(4, 2, 8), NUM_BLOCKS, 16, dtype=torch.float32, device=CPU)
    num_tokens, context = 60, 21
    tree = random_tree(random.Random(0), num_tokens - 1)
    span = Span(0, num_tokens, context, list(range(8)), -1, None, tree)
    batch = StepBatch([0] * num_tokens, [0] * num_tokens, [0] * num_tokens, [span])
    heads = torch.randn(num_tokens, 8, 8, generator=generator)
    cache.write(1, torch.arange(context, context + num_tokens), heads[:, 4:])
    right = attend(ReferenceAttention(4, 2, 8, 16), batch, None, heads, cache)
    got = attend(TorchAttention(4, 2, 8, 16), batch, None, heads, cache)
    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


def test_long_and_short_decodes_are_batched_apart() -> None:
    """Rows whose padding would more than double the work form groups of like length."""
    attention = TorchAttention(2, 2, 8, 4)
    spans = [Span(i, 1, 4 * n - 1, list(range(n)), -1, None) for i, n in enumerate((1, 1, 400, 2))]
    batch = StepBatch([0] * 4, [0] * 4, [0] * 4, spans)
    plan = attention.plan(batch, None, IntPacker())
    assert sorted(group.num_spans for group in plan.groups) == [1, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decode_does_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    """To the bit in bfloat16 where the CPU has it; to rounding in float32."""
    exact = dtype == torch.bfloat16 and cpu_has(dtype)
    tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-2, "atol": 1e-6}
    generator = torch.Generator().manual_seed(2)
    cache = KVCache(config_of(6, 2, 64), NUM_BLOCKS, 16, dtype=dtype, device=CPU)
    everywhere = torch.arange(NUM_BLOCKS * 16)
    cache.write(1, everywhere, torch.randn(len(everywhere), 4, 64, generator=generator).to(dtype))
    attention = TorchAttention(6, 2, 64, 16)
    heads = torch.randn(5, 10, 64, generator=generator).to(dtype)
    lengths = (37, 5, 91, 300, 255)
    spans, first = [], 0
    for row, length in enumerate(lengths):
        blocks = list(range(first, first + length // 16 + 1))
        first += len(blocks)
        spans.append(Span(row, 1, length, blocks, -1, None))

    def run(chosen: list[int]) -> torch.Tensor:
        picked = [
            Span(i, 1, spans[row].context_len, spans[row].block_table, -1, None)
            for i, row in enumerate(chosen)
        ]
        zeros = [0] * len(chosen)
        return attend(attention, StepBatch(zeros, zeros, zeros, picked), None, heads[chosen], cache)

    together = run([0, 1, 2, 3, 4])
    for row in range(5):
        torch.testing.assert_close(run([row])[0], together[row], **tolerance)
    torch.testing.assert_close(run([3, 0])[1], together[0], **tolerance)
