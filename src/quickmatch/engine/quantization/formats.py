"""Weight formats of few bits, and the rounding of a matrix to one.

A matrix [out, in] is cut along `in` into groups; each group of a row has a scale, and in asymmetric
formats a zero point. A weight is then (code - zero) * scale, with codes from 0 to 2^bits - 1; in
symmetric formats the zero point is the middle, so that codes are what others store as signed
numbers, moved up. In MXFP4 codes are small floating-point numbers instead (mxfp4.py), in FP8 the
bits of an e4m3, with one scale a row. Owns no file and no kernel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quickmatch.core.errors import ConfigError
from quickmatch.engine.quantization import mxfp4


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """How weights are rounded. group_size: inputs that share a scale, at most; 0: a whole row."""

    name: str
    bits: int
    group_size: int
    is_symmetric: bool
    is_float: bool = False  # codes are MXFP4's; of 8 bits: e4m3's

    @property
    def zero(self) -> int:
        """The code of 0.0 in a symmetric format."""
        return 1 << (self.bits - 1)

    @property
    def largest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1


INT8 = WeightFormat(name="int8", bits=8, group_size=128, is_symmetric=True)
INT4 = WeightFormat(name="int4", bits=4, group_size=32, is_symmetric=True)
INT4_ASYMMETRIC = WeightFormat(name="int4-asym", bits=4, group_size=32, is_symmetric=False)
MXFP4 = WeightFormat(
    name="mxfp4", bits=4, group_size=mxfp4.GROUP_SIZE, is_symmetric=True, is_float=True
)
FP8 = WeightFormat(name="fp8", bits=8, group_size=0, is_symmetric=True, is_float=True)
FORMATS = {one.name: one for one in (INT8, INT4, INT4_ASYMMETRIC, MXFP4)}
_LOADABLE = {**FORMATS, FP8.name: FP8}  # a folder in FP8 is others' to write

_LEAST_GROUP = 16
_CHUNK = 1 << 18  # numbers that are rounded at a time
_LEAST_SCALE = 2.0**-20  # of a group of zeros
_MOST_E4M3 = 448.0
_SCALE_UP = 256.0  # as kernels do it: of small weights they would be too small for float16


@dataclass(slots=True)
class QuantizedTensor:
    """A matrix [out, in] in a format."""

    codes: Tensor  # [out, in] uint8, one code a byte
    scales: Tensor  # [out, in / group_size] float32
    zeros: Tensor | None  # the same shape, uint8; None: symmetric
    bits: int
    is_float: bool = False  # codes are MXFP4's; of 8 bits: e4m3's

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    def to(self, device: torch.device) -> "QuantizedTensor":
        """Return the same on a device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        codes, scales = self.codes.to(device), self.scales.to(device)
        return QuantizedTensor(codes, scales, zeros, self.bits, self.is_float)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrix that the codes stand for."""
        codes = in_groups(self.codes, self.group_size)
        zeros = None if self.zeros is None else self.zeros[..., None]
        numbers = from_codes(codes, zeros, bits=self.bits, is_float=self.is_float)
        out: Tensor = (numbers * self.scales[..., None]).flatten(1).to(dtype)
        return out


def find_format(name: str) -> WeightFormat:
    """Return a format by its name. Raises ConfigError."""
    if name not in _LOADABLE:
        raise ConfigError(f"there is no weight format {name!r}; there are: {', '.join(_LOADABLE)}")
    return _LOADABLE[name]


def group_size_of(wanted: int, num_inputs: int) -> int:
    """Return the largest group of at most `wanted` inputs that divides num_inputs.

    Halves of `wanted` are tried. Raises ConfigError if none of at least 16 does.
    """
    size = wanted
    while size >= _LEAST_GROUP:
        if num_inputs % size == 0:
            return size
        size //= 2
    raise ConfigError(
        f"a matrix with {num_inputs} inputs has no groups of {_LEAST_GROUP} or more; "
        "leave this model unquantized"
    )


def quantize(weight: Tensor, form: WeightFormat) -> QuantizedTensor:
    """Round a matrix [out, in] to the nearest codes. Raises ConfigError on an odd width."""
    out, num_inputs = weight.shape
    size = group_size_of(form.group_size, num_inputs) if form.group_size else num_inputs
    if form.is_float and form.group_size and size != form.group_size:
        raise ConfigError(
            f"a matrix with {num_inputs} inputs has no groups of {form.group_size}, as "
            f"{form.name} has them; use int4 for this model"
        )
    shape, device = (out, num_inputs // size), weight.device
    codes = torch.empty(out, num_inputs, dtype=torch.uint8, device=device)
    scales = torch.empty(shape, device=device)
    zeros = None
    if not form.is_symmetric:
        zeros = torch.empty(shape, dtype=torch.uint8, device=device)
    step = max(1, _CHUNK // num_inputs)  # rows at a time, so that what is between stays in cache
    for first in range(0, out, step):
        rows = slice(first, first + step)
        grouped = in_groups(weight[rows].float(), size)
        scale, zero = group_scales(grouped, form)
        scales[rows] = scale
        if zeros is not None and zero is not None:
            zeros[rows] = zero
            zero = zero[..., None]
        codes[rows] = to_codes(grouped, scale[..., None], zero, form).flatten(1)
    return QuantizedTensor(codes, scales, zeros, form.bits, form.is_float)


def in_groups(weight: Tensor, size: int) -> Tensor:
    """Return [out, in] as [out, in / size, size]."""
    return weight.reshape(weight.shape[0], -1, size)


def group_scales(grouped: Tensor, form: WeightFormat) -> tuple[Tensor, Tensor | None]:
    """Return scales and zero points of groups [..., group_size]: [...] float32, [...] uint8."""
    if form.is_float and form.bits == 8:
        return (grouped.abs().amax(-1) / _MOST_E4M3).clamp(min=_LEAST_SCALE), None
    if form.is_float:
        return mxfp4.best_scales(grouped), None
    if form.is_symmetric:
        scales = grouped.abs().amax(-1) / (form.zero - 1 if form.bits > 4 else form.zero - 0.5)
        return _as_kept(scales), None
    low, high = grouped.amin(-1).clamp(max=0.0), grouped.amax(-1).clamp(min=0.0)
    scales = _as_kept((high - low) / form.largest)
    zeros = (-low / scales).round().clamp(0, form.largest)
    return scales, zeros.to(torch.uint8)


def _as_kept(scales: Tensor) -> Tensor:
    """Return scales as kernels and folders keep them, in float16, so that codes fit to those."""
    scales = scales.clamp(min=_LEAST_SCALE) * _SCALE_UP
    return scales.half().float() / _SCALE_UP


def to_codes(weight: Tensor, scales: Tensor, zeros: Tensor | None, form: WeightFormat) -> Tensor:
    """Return the nearest codes, uint8; scales and zeros broadcast over weight."""
    if form.is_float and form.bits == 8:
        numbers = (weight.float() / scales).clamp_(-_MOST_E4M3, _MOST_E4M3)
        return numbers.to(torch.float8_e4m3fn).view(torch.uint8)
    if form.is_float:
        return mxfp4.nearest_codes(weight, scales)
    offset = form.zero if zeros is None else zeros.float()
    codes = (weight.float() / scales).round_().add_(offset)
    return codes.clamp_(0, form.largest).to(torch.uint8)


def from_codes(codes: Tensor, zeros: Tensor | None, *, bits: int, is_float: bool) -> Tensor:
    """Return what codes stand for, in scales, as float32; zeros broadcast over them."""
    if is_float and bits == 8:
        return codes.view(torch.float8_e4m3fn).float()
    if is_float:
        return mxfp4.values(codes)
    return codes.float() - (1 << (bits - 1) if zeros is None else zeros.float())


def join(parts: list[QuantizedTensor]) -> QuantizedTensor:
    """Stack matrices with the same inputs, kind of codes and groups: [sum of out, in]."""
    bits, is_float, zeros = parts[0].bits, parts[0].is_float, None
    if any(part.zeros is not None for part in parts):
        zeros = torch.cat([_zeros_of(part) for part in parts])
    codes, scales = [part.codes for part in parts], [part.scales for part in parts]
    return QuantizedTensor(torch.cat(codes), torch.cat(scales), zeros, bits, is_float)


def _zeros_of(tensor: QuantizedTensor) -> Tensor:
    if tensor.zeros is not None:
        return tensor.zeros
    return torch.full_like(tensor.scales, 1 << (tensor.bits - 1), dtype=torch.uint8)
