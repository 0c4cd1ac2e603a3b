"""A linear layer for drafts: int8 weights for very few rows, the usual format for more.

A draft of one sequence is one row a step, and its time is that of reading the weights and of
starting kernels. Torch's int8 kernel does both in half the time; from four rows on the packed
bfloat16 kernel is as fast. What int8 rounds off can cost an accepted token, never change one.
Measured: docs/lab-notes.md.

float32 is left exact: it is what drafts are tested in.
"""

from functools import cache

import torch
from torch import Tensor

from quickmatch.engine.linear import Linear, make_linear

_MAX_INT8_ROWS = 3


class DraftLinear:
    """A weight held twice: as `make_linear` has it, and as int8 with a scale for each output."""

    def __init__(self, weight: Tensor) -> None:
        self.out_features, self.in_features = weight.shape
        self._many_rows = make_linear(weight)
        exact = weight.to(torch.float32, copy=True)
        scale = torch.linalg.vector_norm(exact, torch.inf, 1).clamp_min(1e-12) / 127  # [out]
        self._int8 = exact.mul_(1 / scale[:, None]).round_().to(torch.int8)
        self._scale = scale.to(weight.dtype)
        self._few_rows = torch._weight_int8pack_mm
        self.num_bytes = self._many_rows.num_bytes + self._int8.numel() + 2 * len(scale)

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in_features] -> [rows, out_features]."""
        if len(x) > _MAX_INT8_ROWS:
            return self._many_rows(x)
        return self._few_rows(x, self._int8, self._scale)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return residual + self(x); residual [rows, out_features] may be overwritten."""
        if len(x) > _MAX_INT8_ROWS:
            return self._many_rows.add_to(residual, x)
        return residual.add_(self._few_rows(x, self._int8, self._scale))


def make_draft_linear(weight: Tensor) -> Linear:
    """Wrap a weight [out, in] in the format that drafts fastest."""
    is_bfloat16 = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    return DraftLinear(weight) if is_bfloat16 and int8_works() else make_linear(weight)


@cache
def int8_works() -> bool:
    """Whether this torch has the int8 kernel for this CPU, and it is right."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator).bfloat16()
    x = torch.randn(3, 64, generator=generator).bfloat16()
    try:
        got = DraftLinear(weight)(x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool((got.float() - x.float() @ weight.float().T).abs().max() < 0.5)
