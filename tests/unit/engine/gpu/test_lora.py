"""Adapters by Triton's kernels, against each adapter's own two products on its own rows."""

import random

import pytest
import torch

from quickmatch.engine.batch import Span
from quickmatch.engine.gpu.lora import TritonAdapterSteps, TritonLoraStep
from quickmatch.engine.gpu.lora_tiles import FEW, FIELDS, MANY, lora_tiles
from quickmatch.engine.lora import GROUPS, QKV, GroupedStep, LoraLayers, LowRank
from quickmatch.engine.packing import IntPacker

NUM_LAYERS = 2
SIZES = {0: (48, 80), 1: (1100, 48), 2: (48, 150), 3: (33, 48)}  # inputs and outputs of a group


def adapter_of(rank: int, seed: int, *, leaves_out: int = -1) -> LoraLayers:
    generator = torch.Generator().manual_seed(seed)
    layers: LoraLayers = []
    for _ in range(NUM_LAYERS):
        groups: list[LowRank | None] = []
        for group in GROUPS:
            inputs, outputs = SIZES[group]
            a = torch.randn(rank, inputs, generator=generator)
            b = torch.randn(outputs, rank, generator=generator)
            groups.append(None if group == leaves_out else LowRank(a, b))
        layers.append(groups)
    return layers


def spans_of(lengths_and_adapters: list[tuple[int, int]]) -> list[Span]:
    spans, start = [], 0
    for length, adapter in lengths_and_adapters:
        spans.append(Span(start, length, 0, [], adapter, None))
        start += length
    return spans


def num_rows(spans: list[Span]) -> int:
    return spans[-1].start + spans[-1].num_tokens


def grouped(spans: list[Span], layers_of: dict[int, LoraLayers]) -> GroupedStep:
    parts = []
    for adapter in {span.adapter_row for span in spans} - {-1}:
        rows = [
            torch.arange(span.start, span.start + span.num_tokens)
            for span in spans
            if span.adapter_row == adapter
        ]
        parts.append((torch.cat(rows), layers_of[adapter]))
    return GroupedStep(parts)


def moved(layers: LoraLayers, device: torch.device) -> LoraLayers:
    return [
        [None if low is None else LowRank(low.a.to(device), low.b.to(device)) for low in layer]
        for layer in layers
    ]


def steps_of(layers_of: dict[int, LoraLayers], device: torch.device) -> TritonAdapterSteps:
    steps = TritonAdapterSteps(NUM_LAYERS, dtype=torch.float32, device=device)
    for row, layers in layers_of.items():
        steps.put(row, moved(layers, device))
    return steps


MIXES = {
    "decodes": [(1, 0), (1, -1), (1, 40), (1, 3), (1, 0)],
    "prompts": [(90, 3), (1, 0), (20, -1), (17, 0), (2, 40)],
    "one adapter": [(1, 3), (5, 3)],
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("group", GROUPS)
def test_mixed_ranks_are_each_adapters_own_products(
    group: int, mix: str, device: torch.device
) -> None:
    layers_of = {
        0: adapter_of(4, 1),
        3: adapter_of(70, 2, leaves_out=2),
        40: adapter_of(17, 3, leaves_out=0),
    }
    spans = spans_of(MIXES[mix])
    inputs, outputs = SIZES[group]
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(num_rows(spans), inputs, generator=generator)
    y = torch.randn(num_rows(spans), outputs, generator=generator)
    step = steps_of(layers_of, device).step(spans, len(x))
    assert step is not None
    got = step.add(y.clone().to(device), x.to(device), 1, group).cpu()
    right = grouped(spans, layers_of).add(y.clone(), x, 1, group)
    torch.testing.assert_close(got, right, rtol=1e-4, atol=2e-3)
    for span in spans:
        if span.adapter_row < 0:  # untouched, to the bit
            rows = slice(span.start, span.start + span.num_tokens)
            assert torch.equal(got[rows], y[rows])


def test_base_rows_alone_take_no_step(device: torch.device) -> None:
    assert steps_of({0: adapter_of(4, 1)}, device).step(spans_of([(3, -1), (1, -1)]), 4) is None


def test_adapters_come_and_go(device: torch.device) -> None:
    """A dropped row adds nothing, a replaced one adds its own, and larger ranks are told."""
    steps = steps_of({0: adapter_of(4, 1), 1: adapter_of(4, 2)}, device)
    before = steps.version
    steps.drop(1)
    steps.put(1, moved(adapter_of(4, 5), device))
    assert steps.version == before  # nothing that a replayed step depends on has changed
    spans = spans_of([(1, 0), (1, 1)])
    x, y = torch.ones(2, 48), torch.zeros(2, 80)
    step = steps.step(spans, 2)
    assert step is not None
    got = step.add(y.clone().to(device), x.to(device), 0, QKV).cpu()
    layers_of = {0: adapter_of(4, 1), 1: adapter_of(4, 5)}
    right = grouped(spans, layers_of).add(y.clone(), x, 0, QKV)
    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)
    steps.put(2, moved(adapter_of(9, 6), device))
    assert steps.version > before
    steps.put(99, moved(adapter_of(4, 7), device))  # the tables grow, and keep what they held
    step = steps.step(spans, 2)
    assert step is not None
    again = step.add(y.clone().to(device), x.to(device), 0, QKV).cpu()
    torch.testing.assert_close(again, right, rtol=1e-4, atol=1e-4)


def test_lists_of_a_fixed_length_hold_any_mix(device: torch.device) -> None:
    """What is replayed has as many tiles as rows, and those that are not needed do nothing."""
    layers_of = {0: adapter_of(4, 1), 1: adapter_of(20, 2)}
    steps = steps_of(layers_of, device)
    chance = random.Random(0)
    lengths = set()
    for _ in range(3):
        spans = spans_of([(1, chance.randint(-1, 1)) for _ in range(20)])
        packer = IntPacker()
        tiles = lora_tiles(spans, packer, fixed=24)
        packer.run(device)
        lengths.add((len(tiles.fields.tensor), len(tiles.rows.tensor), tiles.size))
        x, y = torch.randn(24, 48), torch.zeros(24, 80)
        got = TritonLoraStep(steps, tiles).add(y.clone().to(device), x.to(device), 0, QKV).cpu()
        right = grouped(spans, layers_of).add(y.clone(), x, 0, QKV)
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-3)
    assert lengths == {(24 * FIELDS, 24, FEW)}


def test_long_runs_of_an_adapter_take_larger_tiles() -> None:
    tiles = lora_tiles(spans_of([(100, 0), (1, 1)]), IntPacker())
    assert (tiles.size, tiles.num_tiles) == (MANY, 3)
