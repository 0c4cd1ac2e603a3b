"""Rounding to few bits: how near it stays, and what it refuses."""

import pytest
import torch

from quickmatch.core.errors import ConfigError
from quickmatch.engine.quantization.formats import (
    FORMATS,
    INT4,
    INT4_ASYMMETRIC,
    INT8,
    WeightFormat,
    find_format,
    group_size_of,
    join,
    quantize,
)

WEIGHT = torch.randn(24, 256, generator=torch.Generator().manual_seed(0))


EVENLY = {name: form for name, form in FORMATS.items() if not form.is_float}


@pytest.mark.parametrize("form", EVENLY.values(), ids=EVENLY)
def test_no_weight_moves_by_more_than_a_step(form: WeightFormat) -> None:
    rounded = quantize(WEIGHT, form)
    assert rounded.group_size == form.group_size
    assert rounded.codes.max() <= form.largest
    steps = rounded.scales.repeat_interleave(rounded.group_size, 1)
    moved = (rounded.dequantized() - WEIGHT).abs() / steps
    # A zero point is rounded too, and moves the ends of its range by up to half a step.
    assert moved.max() <= (0.51 if form.is_symmetric else 1.01)
    assert moved.mean() < 0.27  # 0.25 where every place in a step is as likely


def test_more_bits_and_zero_points_are_nearer() -> None:
    lopsided = WEIGHT + 1.0
    distances = [
        (quantize(lopsided, form).dequantized() - lopsided).norm()
        for form in (INT8, INT4_ASYMMETRIC, INT4)
    ]
    assert distances == sorted(distances)


def test_fp8_keeps_three_binary_digits_and_one_scale_a_row() -> None:
    form = find_format("fp8")
    weight = WEIGHT[:, :40] * torch.logspace(-4, 4, 24)[:, None]  # no width is odd to it
    rounded = quantize(weight, form)
    assert rounded.scales.shape == (24, 1)
    large = weight.abs() > weight.abs().amax(1, keepdim=True) * 2**-14  # the rest is subnormal
    moved = ((rounded.dequantized() - weight) / weight).abs()
    assert moved[large].max() <= 2**-4
    assert 0.01 < moved[large].mean() < 2**-5
    assert torch.isfinite(rounded.dequantized()).all()
    both = join([rounded, quantize(weight[:3], form)])
    assert torch.equal(both.dequantized()[:24], rounded.dequantized())
    assert not quantize(torch.zeros(2, 40), form).dequantized().any()


def test_groups_of_zeros_stay_zero() -> None:
    for form in FORMATS.values():
        assert not quantize(torch.zeros(2, 64), form).dequantized().any()


def test_group_sizes_divide_the_width() -> None:
    assert group_size_of(128, 704) == 64
    with pytest.raises(ConfigError, match="40 inputs has no groups of 16"):
        group_size_of(32, 40)


def test_unknown_formats_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no weight format 'int3'; there are: int8, int4"):
        find_format("int3")


def test_matrices_are_joined_with_and_without_zero_points() -> None:
    # Guards: a part whose zero points all lie in the middle makes the others dense.
    form = WeightFormat(name="int4-asym", bits=4, group_size=32, is_symmetric=False)
    plain = WeightFormat(name="int4", bits=4, group_size=32, is_symmetric=True)
    parts = [quantize(WEIGHT, form), quantize(WEIGHT[:8], plain)]
    joined = join(parts)
    assert joined.shape == (32, 256)
    right = torch.cat([part.dequantized() for part in parts])
    assert torch.equal(joined.dequantized(), right)


def test_scales_are_numbers_that_folders_and_kernels_can_keep() -> None:
    for form in FORMATS.values():
        scales = quantize(WEIGHT * 1e-3, form).scales * 256
        assert torch.equal(scales.half().float(), scales)
