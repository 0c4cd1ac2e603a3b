"""The norm is torch's own rms_norm, for rows of any size, whatever rows stand beside them."""

import pytest
import torch
import torch.nn.functional as F

from quickmatch.engine.norm import RmsNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_is_rms_norm_row_by_row(dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(9, 384, generator=generator) * scale + 0.5 * scale).to(dtype)
    weight = torch.randn(384, generator=generator).to(dtype)
    norm = RmsNorm(weight, 1e-5)
    right = F.rms_norm(x.float(), (384,), weight.float(), 1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(norm(x).float(), right, rtol=tolerance, atol=tolerance)
    assert all(torch.equal(norm(x[i : i + 1])[0], norm(x)[i]) for i in range(9))
