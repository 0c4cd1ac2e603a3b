"""Rounding of a matrix that keeps its products with typical inputs: GPTQ.

Columns are rounded one after the other, and each column's error is put onto the columns that are
still to come, in the measure in which their inputs go together, so that it cancels in the product.
Owns the arithmetic of one matrix; the inputs' second moments come from model.py.

Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv 2210.17323, algorithm 1 and its Cholesky form.
"""

import torch
from torch import Tensor

from quickmatch.core.errors import ConfigError
from quickmatch.engine.quantization.formats import (
    QuantizedTensor,
    WeightFormat,
    from_codes,
    group_scales,
    group_size_of,
    to_codes,
)

_BLOCK_COLUMNS = 128  # rounded before their errors reach the columns behind them


def quantize_calibrated(
    weight: Tensor, hessian: Tensor, form: WeightFormat, damping: float = 0.01
) -> QuantizedTensor:
    """Round a matrix [out, in] so that its products with the calibration inputs change little.

    hessian: [in, in], the sum of xᵀx over the inputs x; its scale does not matter. damping: share
    of its mean diagonal that is added to it. A group's scales are taken when its first column's
    turn has come. Inputs that were always 0 tell nothing; their columns are rounded plainly.
    Raises ConfigError on an odd width, or where the hessian is not finite.
    """
    size = group_size_of(form.group_size, weight.shape[1])
    inverse = _inverse_factor(hessian, damping)
    left = weight.float().clone()  # what is still to be rounded, errors of others included
    codes = torch.empty_like(left, dtype=torch.uint8)
    scales: list[Tensor] = []
    zeros: list[Tensor] = []
    step = max(size, _BLOCK_COLUMNS // size * size)
    for start in range(0, left.shape[1], step):
        end = min(start + step, left.shape[1])
        block, factor = left[:, start:end], inverse[start:end, start:end]
        errors = torch.empty_like(block)
        for column in range(end - start):
            if column % size == 0:
                scale, zero = group_scales(block[:, column : column + size], form)
                scales.append(scale)
                zeros += [] if zero is None else [zero]
            chosen = to_codes(block[:, column], scale, zero, form)
            codes[:, start + column] = chosen
            rounded = scale * from_codes(chosen, zero, bits=form.bits, is_float=form.is_float)
            error = (block[:, column] - rounded) / factor[column, column]
            block[:, column:].addr_(error, factor[column, column:], alpha=-1.0)
            errors[:, column] = error
        left[:, end:].addmm_(errors, inverse[start:end, end:], alpha=-1.0)
    kept = torch.stack(zeros, 1) if zeros else None
    return QuantizedTensor(codes, torch.stack(scales, 1), kept, form.bits, form.is_float)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the damped hessian's inverse, float32 [in, in]."""
    damped = hessian.to(torch.float64, copy=True)  # the inverse wants the digits
    if not bool(damped.isfinite().all()):
        raise ConfigError(
            "the model's activations on the calibration text are not finite; calibrate with other "
            "text, or check the model"
        )
    diagonal = damped.diagonal()
    mean = diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
    diagonal[diagonal == 0] = mean
    diagonal += damping * mean
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()
