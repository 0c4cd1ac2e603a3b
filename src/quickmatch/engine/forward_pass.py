"""The pass of a model over a step's rows: one interface, three ways to compute it.

`TorchPass` (torch_pass.py) is made of torch's operations and runs anywhere, in any format.
`NativePass` (native_pass.py) is one call of our own C++ a step, for processors with AVX2 and
bfloat16. `TritonPass` (gpu/triton_pass.py) is for GPUs: Triton's kernels, decode steps as graphs.
Each owns what a pass needs: the weights, the keys and values, the loaded adapters. Which one a
model gets is decided by `make_pass`, once, and logged with the reason.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from quickmatch.core.errors import ConfigError
from quickmatch.engine.batch import Eviction, StepBatch
from quickmatch.engine.lora import LoraLayers
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.quantization.formats import FP8, WeightFormat

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class PassOutput:
    """What a pass computed, beside the keys and values that it stored."""

    logits: Tensor | None  # [rows asked for, vocab], until the next run; None if there is none
    aux: list[Tensor] = field(default_factory=list)  # [num_tokens, hidden] for each layer asked for
    best: list[int] | None = None  # the likeliest token of each row, where the pass found it


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSize:
    """How much memory for keys and values a pass makes, and how far positions go."""

    num_blocks: int
    block_size: int  # tokens
    max_model_len: int  # tokens
    max_num_seqs: int = 64  # sequences in one step
    has_int8_kv: bool = False  # keys and values in 8 bits


class ForwardPass(Protocol):
    """What the runner and the draft model ask of either way."""

    num_bytes: int  # of the weights

    @property
    def embedding(self) -> Tensor:
        """[vocab, hidden]."""
        ...

    def run(
        self, batch: StepBatch, rows: list[int], aux_layers: tuple[int, ...] = ()
    ) -> PassOutput:
        """Run a step: store its tokens' keys and values; compute the logits of `rows`.

        aux_layers: the hidden states entering these layers are wanted, of every row.
        """
        ...

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy keys and values between slots; all are read before any is written."""
        ...

    def evict(self, eviction: Eviction) -> None:
        """Draw a sequence's keys and values together, each layer and head by itself.

        Of the tokens between the first and the last ones those stay whose keys have the least
        cosine with the mean direction of all the sequence's keys.
        """
        ...

    def put_adapter(self, row: int, layers: LoraLayers) -> None:
        """Let spans with this adapter row use these layers."""
        ...

    def drop_adapter(self, row: int) -> None:
        """Forget an adapter."""
        ...


def make_pass(
    folder: Path,
    model: ModelConfig,
    size: PassSize,
    *,
    dtype: torch.dtype,
    device: torch.device,
    num_threads: int = 1,
    form: WeightFormat | None = None,
) -> ForwardPass:
    """Load a model's weights into the faster pass that can run it here.

    num_threads: of the native pass, which uses them where a step is large enough; torch has its
    own. form: what the weights are rounded to while they are read. Raises ModelLoadError naming
    what is wrong with the folder, ConfigError if weights, or keys and values, are to have a format
    that cannot be had here.
    """
    from quickmatch.engine.gpu.support import why_not_fp8, why_not_triton
    from quickmatch.engine.native_pass import NativePass, why_not_native
    from quickmatch.engine.torch_pass import TorchPass

    if form is FP8 and (reason := why_not_fp8(device)):
        raise ConfigError(
            f"quantization fp8 needs a GPU that has it, and {reason}; use int8 for as few bits"
        )
    reason = why_not_native(model, size.block_size, dtype=dtype, device=device)
    if reason is None:
        logger.info("%s runs in the native decoder", folder.name)
        return NativePass(folder, model, size, num_threads=num_threads, form=form)
    if size.has_int8_kv:
        raise ConfigError(
            f"kv_cache_dtype int8 needs the native decoder, which cannot run here: {reason}; "
            "leave the setting out"
        )
    if device.type == "cuda":
        reason = why_not_triton(device)
        if reason is None:
            from quickmatch.engine.gpu.triton_pass import TritonPass

            logger.info("%s runs in Triton's kernels", folder.name)
            return TritonPass(folder, model, size, dtype=dtype, device=device, form=form)
        logger.warning("%s runs in torch's operations, slower: %s", folder.name, reason)
    else:
        logger.info("%s runs in torch's operations: %s", folder.name, reason)
    return TorchPass(folder, model, size, dtype=dtype, device=device, form=form)
