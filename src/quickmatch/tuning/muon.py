"""Muon: momentum, made orthogonal, as a matrix's step.

Owns the optimizer. torch.optim's multiplies in bfloat16 whatever the processor, which takes a
quarter of a head's training step on a CPU without such products; this one takes float32 there.
Elsewhere the steps are those of torch.optim.Muon, bit for bit.

Source: Muon, https://kellerjordan.github.io/posts/muon.
"""

from collections.abc import Iterable
from math import sqrt

import torch
from torch import Tensor
from torch.optim import Optimizer

from quickmatch.engine.precision import cpu_has

_MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.775, 2.0315)  # steepest at zero; singular values end between 0.7 and 1.2
_NUM_ITERATIONS = 5
_LEAST_NORM = 1e-7


class Muon(Optimizer):
    """Over matrices. The learning rate is set in `param_groups`, step by step."""

    def __init__(self, matrices: Iterable[Tensor], *, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - _MOMENTUM)
                update = orthogonal(matrix.grad.lerp(momentum, _MOMENTUM))
                num_rows, num_columns = matrix.shape
                matrix.mul_(1 - rate * decay)
                matrix.add_(update, alpha=-rate * sqrt(max(1, num_rows / num_columns)))


def orthogonal(matrix: Tensor) -> Tensor:
    """Return a matrix of the same singular vectors, its singular values all about 1.

    Newton-Schulz iterations, in bfloat16 where that is quick: they need no precision.
    """
    dtype = torch.bfloat16 if matrix.is_cuda or cpu_has(torch.bfloat16) else torch.float32
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).to(dtype, copy=True)
    x.div_(x.norm().clamp(min=_LEAST_NORM))  # so that no singular value is above 1
    a, b, c = _QUINTIC
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
