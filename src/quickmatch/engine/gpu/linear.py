"""Linear layers on a GPU (linear.py's interface): dense ones by cuBLAS, few bits by Triton.

Activations are never rounded: a weight of few bits is widened in registers, to the rows' format.
What that saves is reading, the bound of decoding; many rows take no less time than dense ones.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quickmatch.engine.gpu.kernels import product as kernels
from quickmatch.engine.linear import Linear
from quickmatch.engine.quantization.formats import QuantizedTensor
from quickmatch.engine.quantization.packing import pack

_UNIT = 2.0**-8  # small scales are kept times 256, lest float16 lose their digits
_LEAST_GROUP = 16


class GpuDenseLinear:
    """A weight [out, in] as torch holds it; a residual is added by the product itself."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.num_bytes = _bytes(weight) + _bytes(bias)
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        if self._bias is not None:
            residual.add_(self._bias)
        return residual.addmm_(x, self._weight.t())


@dataclass(frozen=True, slots=True)
class _Tile:
    rows: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


def tile_of(num_rows: int, *, has_4_bits: bool, itemsize: int = 2) -> _Tile:
    """Return the kernel's shape for so many rows: three in all, so that three are compiled.

    itemsize: bytes of a number of the rows, of which shared memory holds fewer the larger they are.
    """
    if num_rows <= 16:
        return _Tile(16, 16, (1024 if has_4_bits else 512) // itemsize, 4, 5)
    if num_rows <= 64:
        return _Tile(64, 32, 128, 4, 4)
    return _Tile(128, 128, 64, 8, 3)


class QuantizedLinear:
    """A weight of few bits, packed; widened while it is multiplied."""

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None = None) -> None:
        """To be called only where `can_multiply` says yes."""
        self.out_features, self.in_features = weight.shape
        self._has_4_bits = weight.bits == 4
        self._kind = _kind(weight)
        packed = pack(weight.codes, 4).view(torch.uint8) if self._has_4_bits else weight.codes
        self._codes = packed.contiguous()
        self._scales, self._unit = _kept(weight.scales)
        self._zeros = None if weight.zeros is None else weight.zeros.contiguous()
        self._num_groups = weight.scales.shape[1]
        self._group = 0 if self._num_groups == 1 else weight.group_size
        self._zero = 0 if weight.is_float else 1 << (weight.bits - 1)
        self._bias = bias
        held = (self._codes, self._scales, self._zeros, bias)
        self.num_bytes = sum(map(_bytes, held))

    def __call__(self, x: Tensor) -> Tensor:
        out = x.new_empty(x.shape[0], self.out_features)
        return self._run(x, out, adds=False)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return self._run(x, residual, adds=True)

    def _run(self, x: Tensor, out: Tensor, *, adds: bool) -> Tensor:
        num_rows = x.shape[0]
        tile = tile_of(num_rows, has_4_bits=self._has_4_bits, itemsize=x.element_size())
        kernels.product[-(-num_rows // tile.rows), -(-self.out_features // tile.outputs)](
            x, self._codes, self._scales,
            self._codes if self._zeros is None else self._zeros,
            x if self._bias is None else self._bias, out,
            num_rows, self.in_features, self.out_features, self._num_groups, x.stride(0),
            self._unit,
            KIND=self._kind, GROUP=self._group, ZERO=self._zero,
            HAS_ZEROS=self._zeros is not None, HAS_BIAS=self._bias is not None, ADDS=adds,
            BLOCK_M=tile.rows, BLOCK_N=tile.outputs, BLOCK_K=tile.inputs,
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
        return out


def make_gpu_linear(
    weight: Tensor | QuantizedTensor,
    bias: Tensor | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Linear:
    """Wrap a weight [out, in] in the format that multiplies it on a GPU, and move it there."""
    weight = weight.to(device)
    if isinstance(weight, Tensor):
        return GpuDenseLinear(weight, bias)
    if can_multiply(weight):
        return QuantizedLinear(weight, bias)
    return GpuDenseLinear(weight.dequantized(dtype), bias)


def can_multiply(weight: QuantizedTensor) -> bool:
    """Whether the kernel takes a weight: groups of a power of two, or one group a row."""
    size = weight.group_size
    is_even = weight.bits == 8 or weight.shape[1] % 8 == 0  # whole words
    fits = size >= _LEAST_GROUP and size & (size - 1) == 0
    return is_even and (weight.scales.shape[1] == 1 or fits)


def _kind(weight: QuantizedTensor) -> int:
    kinds = {
        (8, False): kernels.INT8,
        (4, False): kernels.INT4,
        (4, True): kernels.MXFP4,
        (8, True): kernels.FP8,
    }
    return int(kinds[weight.bits, weight.is_float].value)


def _kept(scales: Tensor) -> tuple[Tensor, float]:
    """Return scales in float16 times 256 where that is exact, and what undoes it; else float32."""
    halves = (scales / _UNIT).half()
    if torch.equal(halves.float() * _UNIT, scales.float()):
        return halves.contiguous(), _UNIT
    return scales.float().contiguous(), 1.0


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
