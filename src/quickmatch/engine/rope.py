"""Rotary position embedding: tables of cosines and sines, and their application.

Owns the frequencies of every supported scaling (default, linear, llama3, yarn) and one table
[max_len, head_dim] each of cosine and sine, made once in float32 and kept in the model's dtype.
A step gathers the rows of its positions once, and every layer uses them.

The halves of a head rotate against each other, as in the Hugging Face checkpoints: with
x = (a, b), rotated = (a·cos - b·sin, b·cos + a·sin). The sine table carries the minus in its
first half, so that the rotation is x·cos + swap(x)·sin: one swap, two multiplications.

Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv 2309.00071), Llama 3.1's scaling as
transformers' `modeling_rope_utils` has it.
"""

import math

import torch
from torch import Tensor

from quickmatch.engine.model_config import RopeConfig


def rope_frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Return the angle a position adds, [head_dim / 2] float32, and the factor on cos and sin."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    frequencies = 1.0 / (rope.theta**exponent)
    if rope.kind == "linear":
        return frequencies / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(frequencies, rope), 1.0
    if rope.kind == "yarn":
        return _yarn(frequencies, rope, head_dim), _yarn_attention_factor(rope)
    return frequencies, 1.0


def _llama3(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """Slow rotations are stretched by `factor`, fast ones kept, those between are blended."""
    wavelength = 2 * math.pi / frequencies
    blend = (rope.original_max_len / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    stretched = frequencies / rope.factor
    blended = (1 - blend) * stretched + blend * frequencies
    out = torch.where(blend < 0, stretched, blended)
    return torch.where(blend > 1, frequencies, out)


def _yarn(frequencies: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """Blend along the dimensions: those that turn often enough keep their frequency."""

    def dimension(num_rotations: float) -> float:
        length = rope.original_max_len / (num_rotations * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies / rope.factor * ramp + frequencies * (1 - ramp)


def _yarn_attention_factor(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


class RotaryTable:
    """Cosines and signed sines of every position up to max_len."""

    def __init__(
        self,
        rope: RopeConfig,
        head_dim: int,
        max_len: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        frequencies, factor = rope_frequencies(rope, head_dim)
        angle = torch.outer(torch.arange(max_len, dtype=torch.float32), frequencies)
        cos, sin = angle.cos() * factor, angle.sin() * factor  # [max_len, head_dim / 2]
        # One table, so that a step gathers once: cos | cos | -sin | sin.
        table = torch.cat((cos, cos, -sin, sin), dim=-1)
        self._table = table.to(device=device, dtype=dtype)  # [max_len, 2 * head_dim]
        self._head_dim = head_dim

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and signed sin of `positions` [n], each [n, 1, head_dim]."""
        rows = self._table.index_select(0, positions).unsqueeze(1)
        return rows[..., : self._head_dim], rows[..., self._head_dim :]


def rotate_(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate `heads` [n, num_heads, head_dim] in place; cos and sin as RotaryTable.at gives."""
    swapped = heads.roll(heads.shape[-1] // 2, -1)
    heads.mul_(cos).addcmul_(swapped, sin)
