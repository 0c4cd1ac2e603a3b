import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from quickmatch.tuning.lora_product import fuse_lora


class Net(nn.Module):
    """Two linear layers, one with a bias, and the shapes of a batch of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 40)
        self.down = nn.Linear(40, 12, bias=False)
        self.config = None

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


def pair_of(dtype: torch.dtype, **settings: float) -> tuple[nn.Module, nn.Module]:
    """Return PEFT's model and a copy, to be fused, with LoRA that does something."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["up", "down"], **settings)
    plain = get_peft_model(Net().requires_grad_(False).to(dtype), config)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter, dtype=torch.float32) / 4
    return plain, copy.deepcopy(plain)


def learnt(model: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return output, and the gradients of the input and of all trained weights."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        out = model(x)
    (out.float() ** 2).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert x.grad is not None
    return out.detach(), x.grad, [g for g in gradients if g is not None]


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_outputs_and_gradients_are_those_of_peft(dtype: torch.dtype, off: float) -> None:
    # Guards: a scaling left out, a transposed factor, a gradient in another number format.
    plain, fused = pair_of(dtype)
    assert fuse_lora(fused) == 2
    x = torch.randn(3, 5, 12)
    wanted, found = learnt(plain, x, dtype), learnt(fused, x, dtype)
    assert len(found[2]) == len(wanted[2]) == 4
    for mine, theirs in zip((*found[:2], *found[2]), (*wanted[:2], *wanted[2]), strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine - theirs).norm() <= off * theirs.norm()


def test_layers_that_do_more_are_left_to_peft() -> None:
    # Guards: dropout that is silently not applied.
    _, model = pair_of(torch.float32, lora_dropout=0.5)
    assert fuse_lora(model) == 0


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    # Guards: the product of the first layer's backward, made for nobody.
    _, model = pair_of(torch.float32)
    fuse_lora(model)
    x = torch.randn(2, 12)
    model(x).sum().backward()
    assert x.grad is None
