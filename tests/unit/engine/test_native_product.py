"""The native products by themselves: every instruction set, and AMX's tiles in software."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quickmatch.engine.quantization.formats import QuantizedTensor, find_format, quantize

native = pytest.importorskip("quickmatch._native", reason="the native extension is not installed")
if not native.decoder_isas():
    pytest.skip("this processor has no AVX2", allow_module_level=True)
from quickmatch.engine.native_pass import matrix_parts  # noqa: E402

Multiply = Callable[[Tensor | QuantizedTensor, Tensor, Tensor | None], Tensor]
FORMATS = ["int8", "int4", "int4-asym", "mxfp4"]
# Outputs: one group of panels, several, ends of three, two and one panel, the last of them cut.
OUTS = [64, 200, 152, 81, 11]


def _multiply_by(products: object) -> Multiply:
    def multiply(weight: Tensor | QuantizedTensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        num_out, num_in = weight.shape
        y = torch.full((len(x), num_out), float("nan"))
        products.multiply(  # type: ignore[attr-defined]
            matrix_parts(weight),
            bias=0 if bias is None else bias.data_ptr(),
            num_out=num_out,
            num_in=num_in,
            x=x.data_ptr(),
            num_rows=len(x),
            y=y.data_ptr(),
        )
        return y

    return multiply


@pytest.fixture(params=[*native.decoder_isas(), "software_tiles"])
def multiply(request: pytest.FixtureRequest) -> Multiply:
    """The products of each instruction set of this processor, and those in tiles."""
    return _multiply_by(getattr(native, request.param))


def _numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_out", OUTS)
@pytest.mark.parametrize("num_in", [8, 64, 150, 672])
@pytest.mark.parametrize("num_rows", [1, 7, 16, 35])
def test_in_bfloat16_it_is_the_product(
    multiply: Multiply, num_rows: int, num_in: int, num_out: int
) -> None:
    weight = _numbers(num_out, num_in, seed=1).bfloat16()
    x = _numbers(num_rows, num_in, seed=2).bfloat16().float()
    bias = _numbers(num_out, seed=3).bfloat16()
    expected = x.double() @ weight.double().T + bias.double()
    found = multiply(weight, x, bias)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5 * num_in**0.5)


@pytest.mark.parametrize("num_out", OUTS)
def test_a_row_has_the_same_bits_beside_any_others(multiply: Multiply, num_out: int) -> None:
    weight = _numbers(num_out, 416, seed=1).bfloat16()
    x = _numbers(37, 416, seed=2)
    together = multiply(weight, x, None)
    for count in (1, 5, 16, 17, 32):
        assert torch.equal(multiply(weight, x[:count].contiguous(), None), together[:count])
    assert torch.equal(multiply(weight, x[30:31].contiguous(), None), together[30:31])


@pytest.mark.parametrize("num_out", OUTS)
@pytest.mark.parametrize("num_in", [32, 96, 256, 640])
@pytest.mark.parametrize("name", FORMATS)
def test_in_few_bits_it_is_the_product_of_rounded_rows(
    multiply: Multiply, name: str, num_in: int, num_out: int
) -> None:
    weight = quantize(_numbers(num_out, num_in, seed=1), find_format(name))
    x = _numbers(21, num_in, seed=2)
    expected = x @ weight.dequantized().T
    found = multiply(weight, x, None)
    error = (found - expected).norm() / expected.norm()
    assert error < 0.02  # the rows are rounded to 8 bits


@pytest.mark.parametrize("num_out", OUTS)
@pytest.mark.parametrize("num_in", [32, 96, 256, 640])
@pytest.mark.parametrize("name", FORMATS)
def test_in_few_bits_tiles_give_the_bits_of_the_others(
    name: str, num_in: int, num_out: int
) -> None:
    weight = quantize(_numbers(num_out, num_in, seed=1), find_format(name))
    x = _numbers(37, num_in, seed=2).bfloat16().float()
    bias = _numbers(num_out, seed=3).bfloat16()
    in_tiles = _multiply_by(native.software_tiles)(weight, x, bias)
    assert torch.equal(in_tiles, _multiply_by(native.avx2)(weight, x, bias))
    few = _multiply_by(native.software_tiles)(weight, x[:2].contiguous(), bias)
    assert torch.equal(few, in_tiles[:2])


def test_the_check_of_the_tiles_holds_for_those_in_software() -> None:
    assert native.software_tiles.tiles_are_right()
