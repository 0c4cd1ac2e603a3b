"""Adapters of the native pass beside torch's: over weights in bfloat16, and in 8 and 4 bits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from quickmatch.engine.batch import StepBatch
from quickmatch.engine.lora import LoraLayers, LowRank
from quickmatch.engine.model_config import ModelConfig, read_model_config
from quickmatch.engine.native_pass import NativePass, why_not_native
from quickmatch.engine.quantization.formats import find_format
from quickmatch.engine.torch_pass import TorchPass
from tests.parity.native_steps import CPU, SIZE, TABLES, folders, run, span_of, text_of

__all__ = ["folders"]  # a fixture
pytestmark = pytest.mark.usefixtures("isa")

BF16 = "bf16"
RANKS = (5, 16, 8, 3, 32)  # an odd one, those that have kernels of their own, and a large one
ROWS = [-1, 0, 3, 0, 2, 1, 4]


def adapter_of(model: ModelConfig, seed: int, rank: int) -> LoraLayers:
    """A random adapter on every product but one of the last layer's.

    Those of q, k and v share their ranks where the seed is even; else each has its own.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = model.hidden_size, model.intermediate_size
    places_of = [
        ([model.q_size, model.kv_size, model.kv_size], hidden),
        ([hidden], model.q_size),
        ([inner, inner], hidden),
        ([hidden], inner),
    ]
    layers: LoraLayers = []
    for index in range(model.num_layers):
        places: list[LowRank | None] = []
        for outs, size in places_of:
            own = 1 if seed % 2 == 0 else len(outs)
            a = torch.randn(own * rank, size, generator=generator) * 0.1
            parts = [torch.randn(out, rank, generator=generator) * 0.1 for out in outs]
            b = torch.cat(parts) if own == 1 else torch.block_diag(*parts)
            places.append(LowRank(a.bfloat16(), b.bfloat16()))
        if index == model.num_layers - 1:
            places[1] = None
        layers.append(places)
    return layers


def loaded(folder: Path, form: str) -> tuple[NativePass, TorchPass]:
    """A native pass and torch's in float32 on the same rounded weights, with the same adapters."""
    model = read_model_config(folder)
    reason = why_not_native(model, SIZE.block_size, dtype=torch.bfloat16, device=CPU)
    if reason is not None:
        pytest.skip(reason)
    found = None if form == BF16 else find_format(form)
    native = NativePass(folder, model, SIZE, num_threads=2, form=found)
    exact = TorchPass(folder, model, SIZE, dtype=torch.float32, device=CPU, form=found)
    for row, rank in enumerate(RANKS):
        layers = adapter_of(model, row, rank)
        native.put_adapter(row, layers)
        wide = [[p and LowRank(p.a.float(), p.b.float()) for p in layer] for layer in layers]
        exact.put_adapter(row, wide)
    return native, exact


def batch_of(rows: list[int], lengths: list[int]) -> StepBatch:
    batch = StepBatch([], [], [], [])
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        table = TABLES[i] if i < len(TABLES) else [16]
        span_of(batch, text_of(i, length), 0, table, adapter_row=row)
    return batch


def spans_of(batch: StepBatch, logits: Tensor) -> list[Tensor]:
    return [logits[span.start : span.start + span.num_tokens] for span in batch.spans]


@pytest.mark.parametrize("form", [BF16, "int8", "int4", "mxfp4"])
def test_logits_are_those_of_the_adapters(form: str, folders: dict[str, Path]) -> None:
    native, exact = loaded(folders["qwen2"], form)
    batch = batch_of(ROWS, [20 + i for i in range(len(ROWS))])
    without = batch_of([-1] * len(ROWS), [20 + i for i in range(len(ROWS))])
    right, got, plain = run(exact, batch), run(native, batch), run(exact, without)
    limit = 0.02 if form == BF16 else 0.06  # as without adapters
    for row, one, other, base in zip(
        ROWS, spans_of(batch, got), spans_of(batch, right), spans_of(batch, plain), strict=True
    ):
        assert (one - other).abs().mean() < limit * other.abs().mean()
        if row >= 0:
            assert (other - base).abs().mean() > 0.5 * base.abs().mean()


@pytest.mark.parametrize("form", [BF16, "int8"])
@pytest.mark.parametrize("lengths", [[1] * 7, [9, 3, 40, 1, 70, 2, 5]])
def test_adapters_of_one_batch_do_not_touch_one_another(
    lengths: list[int], form: str, folders: dict[str, Path]
) -> None:
    native, _ = loaded(folders["qwen2"], form)
    batch = batch_of(ROWS, lengths)
    got = run(native, batch)
    for i, together in enumerate(spans_of(batch, got)):
        own = StepBatch([], [], [], [])
        table = TABLES[i] if i < len(TABLES) else [16]
        span_of(own, text_of(i, lengths[i]), 0, table, adapter_row=ROWS[i])
        assert torch.equal(run(native, own), together)
    native.drop_adapter(3)
    with pytest.raises(IndexError):
        run(native, batch)
