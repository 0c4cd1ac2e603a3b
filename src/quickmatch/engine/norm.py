"""RMS normalisation: x / sqrt(mean(x²) + eps) · weight, over the last dimension.

On CPUs torch computes `rms_norm` as about ten small operations, which a decode step of a small
model notices, but layer normalisation as one kernel. Of a row x beside -x the mean is zero and the
variance is mean(x²), so layer normalisation of that pair is the RMS normalisation of x.
Measured: docs/lab-notes.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class RmsNorm:
    """One norm of a model. weight: [size]."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._size = weight.shape[0]
        self._eps = eps
        self._is_paired = weight.device.type == "cpu"
        self._weight = torch.cat([weight, weight]) if self._is_paired else weight.clone()
        self.num_bytes = (
            weight.numel() * weight.element_size()
        )  # once, though a pair holds it twice

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, size] -> [rows, size]."""
        if not self._is_paired:
            return F.rms_norm(x, (self._size,), self._weight, self._eps)
        pair = torch.cat((x, x.neg()), -1)
        normed = F.layer_norm(pair, (2 * self._size,), self._weight, None, self._eps)
        return normed[:, : self._size]
