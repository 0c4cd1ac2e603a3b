"""MXFP4: four-bit floating-point numbers (e2m1), of which 32 share a power of two as their scale.

A code's lowest three bits are the magnitude, its highest the sign. Here numbers are counted in
halves, so that all sixteen are whole, and the scale is half of the standard's. Owns the numbers and
the rounding to them; knows no matrix and no file.

Source: OCP Microscaling Formats (MX) Specification v1.0, 5.3.3.
"""

from itertools import pairwise

import torch
from torch import Tensor

GROUP_SIZE = 32
_MAGNITUDES = (0, 1, 2, 3, 4, 6, 8, 12)  # halves
_SIGN = 8
_BIAS = 127  # of the scale's exponent, as checkpoints keep it
_LEAST, _MOST = -20, 7  # exponents of scales that kernels can keep
LEVELS = torch.tensor([*_MAGNITUDES, *(-m for m in _MAGNITUDES)], dtype=torch.float32)
_MIDDLES = torch.tensor([(a + b) / 2 for a, b in pairwise(_MAGNITUDES)])


def values(codes: Tensor) -> Tensor:
    """Return what codes stand for, in scales: float32, the same shape."""
    return LEVELS.to(codes.device)[codes.long()]


def nearest_codes(weight: Tensor, scales: Tensor) -> Tensor:
    """Return the nearest codes, uint8; scales broadcast over weight."""
    in_scales = weight.float() / scales
    codes = torch.bucketize(in_scales.abs(), _MIDDLES.to(weight.device)).to(torch.uint8)
    return codes + torch.signbit(in_scales).to(torch.uint8) * _SIGN


def best_scales(grouped: Tensor) -> Tensor:
    """Return the scale of each group [..., 32] that loses least: float32 [...].

    The largest number of a group fits with the one; with half of it, it is cut and the others are
    told apart better.
    """
    most = grouped.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny)
    fitting = (most / _MAGNITUDES[-1]).log2().ceil().clamp(_LEAST, _MOST)
    scales = [torch.exp2(exponent.clamp(min=_LEAST)) for exponent in (fitting, fitting - 1)]
    errors = [_error(grouped, scale) for scale in scales]
    return torch.where(errors[1] < errors[0], scales[1], scales[0])


def _error(grouped: Tensor, scales: Tensor) -> Tensor:
    scales = scales[..., None]
    rounded = values(nearest_codes(grouped, scales)) * scales
    return (rounded - grouped).square().sum(-1)


def to_exponents(scales: Tensor) -> Tensor:
    """Return scales as checkpoints keep them: biased exponents of the standard's, uint8."""
    return ((2.0 * scales).log2().round() + _BIAS).to(torch.uint8)


def from_exponents(exponents: Tensor) -> Tensor:
    """Return the scales of such exponents; the inverse."""
    return torch.exp2(exponents.float() - _BIAS) / 2.0
