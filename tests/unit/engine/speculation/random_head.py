"""Random heads of any shape. Weights are drawn wide, so that an error shows in the logits."""

import torch
from torch import Tensor

from quickmatch.engine.speculation.head_config import HeadConfig


def random_head(config: HeadConfig, *, seed: int = 0, scale: float = 0.15) -> dict[str, Tensor]:
    """Return all tensors of a head in float32; it proposes a random choice of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in config.tensor_shapes().items():
        drawn = torch.randn(shape, generator=generator)
        tensors[name] = 1 + 0.2 * drawn if "norm" in name else scale * drawn
    chosen = torch.randperm(config.vocab_size, generator=generator)[: config.draft_vocab_size]
    targets = chosen.sort().values
    tensors["d2t"] = targets - torch.arange(len(targets))
    tensors["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool)
    tensors["t2d"][targets] = True
    return tensors
