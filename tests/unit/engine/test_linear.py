"""Weight formats against plain multiplication; rows that do not feel their neighbours."""

import pytest
import torch

from quickmatch.engine.linear import DenseLinear, Linear, PackedLinear, make_linear, packing_works


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [DenseLinear, PackedLinear, make_linear])
def test_formats_multiply(kind: type[DenseLinear], bias: bool) -> None:
    if kind is PackedLinear and not packing_works(torch.float32):
        pytest.skip("this torch or CPU has no packed kernel")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 24, generator=generator)
    shift = torch.randn(40, generator=generator) if bias else None
    linear: Linear = kind(weight, shift)
    assert (linear.in_features, linear.out_features) == (24, 40)
    assert linear.num_bytes == 4 * (40 * 24 + (40 if bias else 0))
    for rows in (1, 5, 33):
        x = torch.randn(rows, 24, generator=generator)
        right = x @ weight.T + (shift if shift is not None else 0)
        torch.testing.assert_close(linear(x), right, rtol=1e-5, atol=1e-5)
        residual = torch.randn(rows, 40, generator=generator)
        right = right + residual
        torch.testing.assert_close(linear.add_to(residual, x), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_rows_bits_do_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    if not packing_works(dtype):
        pytest.skip("this torch or CPU has no packed kernel")
    generator = torch.Generator().manual_seed(1)
    linear = PackedLinear(torch.randn(640, 384, generator=generator).to(dtype))
    x = torch.randn(70, 384, generator=generator).to(dtype)
    whole = linear(x)
    for rows in (1, 2, 7, 8, 16, 33):
        assert torch.equal(linear(x[:rows]), whole[:rows])
        assert torch.equal(linear(x[70 - rows :]), whole[70 - rows :])
