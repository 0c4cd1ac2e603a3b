"""Linear layers of drafts: close to exact in bfloat16, exact in float32."""

import pytest
import torch
import torch.nn.functional as F

from quickmatch.engine.linear import Linear
from quickmatch.engine.speculation.draft_linear import DraftLinear, int8_works, make_draft_linear


@pytest.mark.skipif(not int8_works(), reason="this torch has no int8 kernel for this CPU")
@pytest.mark.parametrize("num_rows", [1, 3, 4, 40])
def test_int8_is_close_whatever_the_rows(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(48, 96, generator=generator).bfloat16()
    weight[7] = 0  # a row of zeros has no scale of its own
    x = torch.randn(num_rows, 96, generator=generator).bfloat16()
    residual = torch.randn(num_rows, 48, generator=generator).bfloat16()
    linear: Linear = DraftLinear(weight)
    right = F.linear(x.float(), weight.float())
    assert (linear(x).float() - right).abs().max() < 0.02 * right.abs().max()
    added = linear.add_to(residual.clone(), x).float()
    assert (added - right - residual.float()).abs().max() < 0.02 * right.abs().max()
    assert not linear(x)[:, 7].any()


def test_float32_is_left_exact() -> None:
    weight, x = torch.randn(8, 16), torch.randn(1, 16)
    linear = make_draft_linear(weight)
    assert not isinstance(linear, DraftLinear)
    assert torch.allclose(linear(x), F.linear(x, weight), atol=1e-5)
