"""Reads a head's folder into the drafter that fits its target's pass.

Beside a native pass the head is native too, if its widths allow it; else it is made of torch's
operations, as its target may be.
"""

from pathlib import Path

import torch

from quickmatch.engine.forward_pass import ForwardPass, PassSize
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.native_pass import NativePass
from quickmatch.engine.speculation.head import HeadDrafter
from quickmatch.engine.speculation.head_folder import read_head
from quickmatch.engine.speculation.model_drafters import Head


def load_head(
    folder: Path,
    target: ForwardPass,
    *,
    model: ModelConfig,
    size: PassSize,
    dtype: torch.dtype,
    device: torch.device,
) -> Head:
    """Return a drafter for the target. Raises ModelLoadError on a head that does not fit it."""
    config, tensors = read_head(folder)
    if isinstance(target, NativePass):
        from quickmatch.engine.speculation.native_head import NativeHead, can_run

        if can_run(config):
            return NativeHead(
                config,
                tensors,
                target.decoder,
                target.kernels,
                embedding=target.embedding,
                model=model,
                num_blocks=size.num_blocks,
                block_size=size.block_size,
                max_model_len=size.max_model_len,
            )
    return HeadDrafter(
        config,
        tensors,
        embedding=target.embedding,
        model=model,
        num_blocks=size.num_blocks,
        block_size=size.block_size,
        max_model_len=size.max_model_len,
        dtype=dtype,
        device=device,
    )
