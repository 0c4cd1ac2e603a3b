"""Products with weights of few bits, against float32 products with what the codes stand for."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from quickmatch.engine.gpu.linear import (
    GpuDenseLinear,
    QuantizedLinear,
    can_multiply,
    make_gpu_linear,
    tile_of,
)
from quickmatch.engine.quantization.formats import (
    FORMATS,
    FP8,
    INT4,
    INT4_ASYMMETRIC,
    INT8,
    QuantizedTensor,
    join,
    quantize,
)

FORMS = {**FORMATS, FP8.name: FP8}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(
    weight: QuantizedTensor, num_rows: int, device: torch.device, bias: torch.Tensor | None = None
) -> None:
    """Compare the product, alone and added to a residual."""
    linear = QuantizedLinear(weight.to(device), None if bias is None else bias.to(device))
    x = drawn(num_rows, weight.shape[1], seed=3)
    right = F.linear(x, weight.dequantized(), bias)
    torch.testing.assert_close(linear(x.to(device)).cpu(), right, **CLOSE)
    residual = drawn(num_rows, weight.shape[0], seed=4)
    got = linear.add_to(residual.clone().to(device), x.to(device)).cpu()
    torch.testing.assert_close(got, residual + right, **CLOSE)


@pytest.mark.parametrize("num_rows", [1, 16, 17, 70])
@pytest.mark.parametrize("name", FORMS)
def test_every_format_and_every_shape(name: str, num_rows: int, device: torch.device) -> None:
    weight = quantize(drawn(150, 192), FORMS[name])
    check(weight, num_rows, device, drawn(150, seed=2) if num_rows == 16 else None)


@pytest.mark.parametrize("num_inputs", [64, 544, 1088])
def test_widths_that_tiles_do_not_divide(num_inputs: int, device: torch.device) -> None:
    for form in (INT8, INT4_ASYMMETRIC):
        check(quantize(drawn(40, num_inputs), form), 3, device)


@pytest.mark.parametrize("bits", [4, 8])
def test_one_scale_and_zero_point_a_row(bits: int, device: torch.device) -> None:
    """As checkpoints with a scale for each output have them, whatever the width."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 1 << bits, (20, 72), generator=generator).to(torch.uint8)
    zeros = torch.randint(0, 1 << bits, (20, 1), generator=generator).to(torch.uint8)
    weight = QuantizedTensor(codes, drawn(20, 1).abs(), zeros, bits)
    check(weight, 5, device)
    check(replace(weight, zeros=None), 5, device)


def test_joined_parts_with_and_without_zero_points(device: torch.device) -> None:
    plain = quantize(drawn(24, 64), INT4)
    shifted = quantize(drawn(8, 64, seed=1) + 1.0, INT4_ASYMMETRIC)
    check(join([plain, shifted]), 4, device)


def test_scales_that_float16_would_round_are_kept_whole(device: torch.device) -> None:
    weight = quantize(drawn(16, 64), INT4)
    small = replace(weight, scales=weight.scales * 1.0001e-6)
    linear = QuantizedLinear(small.to(device))
    x = drawn(2, 64)
    right = F.linear(x, small.dequantized())
    torch.testing.assert_close(linear(x.to(device)).cpu(), right, rtol=1e-4, atol=1e-10)
    # 64 inputs of half a byte, and two scales a row: of four bytes here, else of two.
    assert linear.num_bytes - QuantizedLinear(weight.to(device)).num_bytes == 16 * 2 * 2


def test_odd_groups_are_made_dense(device: torch.device) -> None:
    codes = torch.full((8, 48), 9, dtype=torch.uint8)
    odd = QuantizedTensor(codes, torch.full((8, 2), 0.5), None, 4)  # groups of 24
    assert not can_multiply(odd)
    linear = make_gpu_linear(odd, None, dtype=torch.float32, device=device)
    assert isinstance(linear, GpuDenseLinear)
    x = drawn(2, 48)
    torch.testing.assert_close(linear(x.to(device)).cpu(), F.linear(x, odd.dequantized()), **CLOSE)


def test_dense_weights_add_to_the_residual(device: torch.device) -> None:
    weight, bias, x, residual = drawn(12, 20), drawn(12), drawn(3, 20), drawn(3, 12)
    for b in (None, bias):
        placed = None if b is None else b.to(device)
        linear = make_gpu_linear(weight, placed, dtype=torch.float32, device=device)
        right = F.linear(x, weight, b)
        torch.testing.assert_close(linear(x.to(device)).cpu(), right, **CLOSE)
        got = linear.add_to(residual.clone().to(device), x.to(device)).cpu()
        torch.testing.assert_close(got, residual + right, **CLOSE)


def test_three_shapes_serve_every_number_of_rows() -> None:
    assert len({tile_of(rows, has_4_bits=True) for rows in range(1, 2000)}) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FORMS)
def test_half_precision_is_near(name: str, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    weight = quantize(drawn(512, 1024) * 0.05, FORMS[name])
    for num_rows in (1, 40, 300):
        x = drawn(num_rows, 1024).to(dtype)
        got = QuantizedLinear(weight.to(device))(x.to(device)).cpu().float()
        right = F.linear(x.float(), weight.dequantized())
        assert (got - right).norm() / right.norm() < 0.01
