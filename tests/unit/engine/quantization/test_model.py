"""A whole model rounded: the layers it names, and what each layer is calibrated with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quickmatch.core.errors import ConfigError, ModelLoadError
from quickmatch.engine.quantization import model as under_test
from quickmatch.engine.quantization.formats import (
    INT4,
    INT8,
    QuantizedTensor,
    WeightFormat,
    quantize,
)
from quickmatch.engine.quantization.model import quantize_model
from quickmatch.engine.quantization.writer import write_quantized
from tests.parity.models import VOCAB, make_model, save_model

TEXTS = [
    torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (40, 1, 23)
]


class Unrounded(QuantizedTensor):
    """Stands for exactly the weight it was made of."""

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.codes.to(dtype)


def test_plain_rounding_of_every_linear_layer(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = dict(
        quantize_model(folder, INT8, calibration=None, progress=lambda *step: steps.append(step))
    )
    linears = {
        name: module.weight
        for name, module in make_model("llama").named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    assert found.keys() == linears.keys()
    assert steps == [(1, 3), (2, 3), (3, 3)]
    for name, weight in linears.items():
        assert torch.equal(found[name].codes, quantize(weight.detach(), INT8).codes)


@pytest.mark.parametrize("kind", ["qwen2-upper-window", "qwen3"])
def test_layers_see_what_the_model_gives_them(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rounding that changes nothing, moments are those of one pass of the whole model."""
    model = make_model(kind)
    path = save_model(model, tmp_path)
    seen: list[Tensor] = []

    def keep(weight: Tensor, hessian: Tensor, _: WeightFormat) -> QuantizedTensor:
        seen.append(hessian)
        return Unrounded(weight, torch.ones(1), None, 8)

    monkeypatch.setattr(under_test, "quantize_calibrated", keep)
    names = [
        name for name, _ in quantize_model(path, INT8, calibration=TEXTS, progress=lambda *_: None)
    ]
    right: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, 1)
            right[name] = right.get(name, torch.zeros(())) + x.T @ x

        return add

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(hook(name))
    with torch.no_grad():
        for ids in TEXTS:
            model(torch.tensor([ids]))
    assert set(names) == set(right)
    for name, found in zip(names, seen, strict=True):
        torch.testing.assert_close(found, right[name], rtol=1e-4, atol=1e-3, msg=name)


def test_calibration_brings_the_model_nearer(tmp_path: Path) -> None:
    model = make_model("llama", initializer_range=0.05)
    path = save_model(model, tmp_path)
    ids = torch.tensor([TEXTS[0]])
    with torch.no_grad():
        right = model(ids).logits
    errors = []
    for calibration in (TEXTS, None):
        weights = dict(model.named_parameters())
        found = quantize_model(path, INT4, calibration=calibration, progress=lambda *_: None)
        with torch.no_grad():
            for name, weight in found:
                weights[f"{name}.weight"].copy_(weight.dequantized())
            errors.append((model(ids).logits - right).norm())
    assert errors[0] < 0.8 * errors[1]


def test_what_cannot_be_rounded_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="calibration text has no token"):
        quantize_model(folder, INT4, calibration=[[]], progress=lambda *_: None)
    rounded = quantize_model(folder, INT4, calibration=None, progress=lambda *_: None)
    write_quantized(folder, tmp_path / "made", INT4, rounded, {})
    with pytest.raises(ModelLoadError, match="is quantized already"):
        quantize_model(tmp_path / "made", INT4, calibration=None, progress=lambda *_: None)
