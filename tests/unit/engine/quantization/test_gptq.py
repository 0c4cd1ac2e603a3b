"""Calibrated rounding: nearer in the product, and plain rounding where inputs tell nothing."""

import pytest
import torch
from torch import Tensor

from quickmatch.core.errors import ConfigError
from quickmatch.engine.quantization.formats import FORMATS, INT4, WeightFormat, quantize
from quickmatch.engine.quantization.gptq import quantize_calibrated


def correlated(num_inputs: int, width: int) -> Tensor:
    """Return inputs [num_inputs, width] that mix a few causes and some noise."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.randn(num_inputs, width // 8, generator=generator)
    mixed = causes @ torch.randn(width // 8, width, generator=generator)
    return mixed + 0.3 * torch.randn(num_inputs, width, generator=generator)


# 320 inputs: int8's groups of 64 in two and a half blocks; int4's groups of 32.
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_products_are_nearer_than_after_plain_rounding(form: WeightFormat) -> None:
    weight = torch.randn(48, 320, generator=torch.Generator().manual_seed(1))
    x = correlated(600, 320)
    unseen = x[400:]
    found = quantize_calibrated(weight, x[:400].T @ x[:400], form)
    plain = quantize(weight, form)
    assert found.scales.shape == plain.scales.shape
    assert (found.zeros is None) == (plain.zeros is None)
    errors = [((q.dequantized() - weight) @ unseen.T).norm() for q in (found, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_inputs_that_go_together_with_none_are_rounded_plainly() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        quantize_calibrated(weight, torch.eye(64) * 3.0, INT4).codes, quantize(weight, INT4).codes
    )


def test_inputs_that_were_always_zero_are_rounded_plainly() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    x = correlated(100, 64)
    x[:, 32:] = 0
    hessian = x.T @ x
    before = hessian.clone()
    found, plain = quantize_calibrated(weight, hessian, INT4), quantize(weight, INT4)
    assert torch.equal(found.codes[:, 32:], plain.codes[:, 32:])
    assert not torch.equal(found.codes[:, :32], plain.codes[:, :32])
    assert torch.equal(hessian, before)


def test_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigError, match="not finite"):
        quantize_calibrated(torch.ones(2, 32), torch.full((32, 32), torch.inf), INT4)
