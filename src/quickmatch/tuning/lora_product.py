"""A linear layer with LoRA as one node of the graph, in place of PEFT's five.

PEFT computes the two thin products, the scaling and the sum as operations of their own, and
autograd as many backwards; at rank 8 that is a fifth of a small model's step. Here the thin
products add onto what the wide ones have written.

Owns the arithmetic alone: weights, names and files stay PEFT's. A layer with dropout, DoRA or a
quantized base keeps PEFT's own forward.

Source: LoRA (arXiv 2106.09685), y = W x + (alpha / rank) B A x.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def fuse_lora(model: nn.Module) -> int:
    """Have the LoRA layers of a PEFT model compute by `lora_linear`; return how many do."""
    from peft.tuners.lora import Linear

    layers: list[Any] = [m for m in model.modules() if isinstance(m, Linear) and _is_plain(m)]
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.active_adapters[0])
    return len(layers)


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """Return x Wᵀ + bias + scaling · (x Aᵀ) Bᵀ, with gradients for x, A and B; W is frozen.

    x: [..., in]; weight: [out, in]; a: [rank, in]; b: [out, rank]. Products are computed in the
    weight's format, gradients returned in their own.
    """
    out: Tensor = _LoraLinear.apply(x, weight, bias, a, b, scaling)  # type: ignore[no-untyped-call]
    return out


def _is_plain(layer: Any) -> bool:
    if len(layer.active_adapters) != 1 or layer.merged or layer.disable_adapters:
        return False
    name = layer.active_adapters[0]
    return (
        type(layer.base_layer) is nn.Linear
        and name in layer.lora_A
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_B[name].bias is None
        and not layer.lora_variant
    )


def _forward(layer: Any, name: str, x: Tensor) -> Tensor:
    base = layer.base_layer
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return lora_linear(x, base.weight, base.bias, a, b, layer.scaling[name])


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        a, b = a.to(weight.dtype), b.to(weight.dtype)
        inner = rows @ a.T  # [num_rows, rank]
        out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        out.addmm_(inner, b.T, alpha=scaling)
        ctx.save_for_backward(rows, weight, a, b, inner)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, inner = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1]).to(weight.dtype)
        through = grad @ b  # [num_rows, rank]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(through, a, alpha=ctx.scaling)
            grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
        grad_a = (through.T @ rows).float().mul_(ctx.scaling)
        grad_b = (grad.T @ inner).float().mul_(ctx.scaling)
        return grad_x, None, None, grad_a, grad_b, None
