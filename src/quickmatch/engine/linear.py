"""The linear layer as one interface over weight formats; y = x·Wᵀ + b.

A format is a class with three things: call it, call it with a residual to add, and say how many
bytes it holds. Dense weights come in two: `DenseLinear`, which is plain torch and runs
anywhere, and `PackedLinear`, which keeps the weight in oneDNN's own layout and is two to three
times as fast on CPUs for the few rows of a decode step. Integer formats join as further classes.

`make_linear` decides which, once, by trying the packed kernel on the dtype. The packed kernel
gives a row the same bits whatever other rows stand beside it (a test holds it to that), on
which the independence of a request from its neighbours rests.
"""

from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear(Protocol):
    """What the decoder asks of a weight, whatever its format."""

    in_features: int
    out_features: int
    num_bytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in_features] -> [rows, out_features]."""
        ...

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return residual + self(x); residual [rows, out_features] may be overwritten."""
        ...


class DenseLinear:
    """A weight [out, in] as torch holds it."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.num_bytes = _bytes(weight) + _bytes(bias)
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual.add_(F.linear(x, self._weight, self._bias))


class PackedLinear:
    """A weight in oneDNN's blocked layout, made once; the original is not kept."""

    # The layout does not depend on the number of rows that will come, beyond this hint.
    _ROWS_HINT = 8

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.num_bytes = _bytes(weight) + _bytes(bias)
        self._bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, self._ROWS_HINT)
        self._linear = torch.ops.mkldnn._linear_pointwise.default
        self._linear_add = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._linear(x, self._packed, self._bias, "none", [], "")
        return out

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self._linear_add(x, residual, self._packed, self._bias, "add")
        return out


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Wrap a weight [out, in] in the fastest format that runs it exactly."""
    if weight.device.type == "cpu" and packing_works(weight.dtype):
        return PackedLinear(weight, bias)
    return DenseLinear(weight, bias)


@cache
def packing_works(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU run the packed kernel in `dtype`, and rightly."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator).to(dtype)
    x = torch.randn(3, 64, generator=generator).to(dtype)
    residual = torch.ones(3, 32, dtype=dtype)
    try:
        got = PackedLinear(weight).add_to(residual.clone(), x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    right = residual.float() + F.linear(x.float(), weight.float())
    tolerance = 1e-4 if dtype == torch.float32 else 0.25
    return bool((got.float() - right).abs().max() < tolerance)


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
