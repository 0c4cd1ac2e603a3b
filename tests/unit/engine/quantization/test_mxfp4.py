"""MXFP4's numbers, its scales, and how near rounding to them stays."""

import pytest
import torch

from quickmatch.core.errors import ConfigError
from quickmatch.engine.quantization.formats import MXFP4, quantize
from quickmatch.engine.quantization.mxfp4 import from_exponents, to_exponents

# OCP MX v1.0, table of e2m1: sign, two bits of exponent, one of mantissa.
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


@pytest.mark.parametrize("exponent", [-14, -3, 0, 5])
def test_its_own_numbers_are_kept_exactly(exponent: int) -> None:
    weight = torch.tensor([E2M1 * 2, E2M1[::-1] * 2]) * 2.0**exponent
    rounded = quantize(weight, MXFP4)
    assert torch.equal(rounded.dequantized(), weight)
    nonzero = weight[0] != 0
    assert rounded.codes[0][nonzero].tolist() == [c for c in [*range(16)] * 2 if c not in (0, 8)]
    assert to_exponents(rounded.scales).unique().tolist() == [127 + exponent]


def test_exponents_are_those_of_twice_the_scale() -> None:
    exponents = torch.arange(108, 135, dtype=torch.uint8)
    assert torch.equal(to_exponents(from_exponents(exponents)), exponents)
    assert from_exponents(torch.tensor([127])).item() == 0.5


def test_every_number_goes_to_the_nearest_where_it_fits() -> None:
    weight = torch.linspace(-6, 6, 32 * 40).reshape(40, 32)
    weight[:, 0] = 6.0  # fixes the scale
    levels = torch.tensor(E2M1)
    nearest = levels[(weight[..., None] - levels).abs().argmin(-1)]
    moved = (quantize(weight, MXFP4).dequantized() - weight).square().sum(-1)
    assert (moved <= (nearest - weight).square().sum(-1) + 1e-4).all()


def test_normal_weights_lose_about_an_eighth() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    lost = (quantize(weight, MXFP4).dequantized() - weight).norm() / weight.norm()
    assert 0.09 < lost < 0.13


def test_a_width_without_groups_of_32_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"48 inputs has no groups of 32.* use int4"):
        quantize(torch.zeros(2, 48), MXFP4)
