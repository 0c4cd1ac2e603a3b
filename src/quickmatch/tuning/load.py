"""Loads a base model for training or measuring, with or without an adapter.

Owns the choice of device, number format and threads ("auto" is resolved here, with a reason).
Knows no jobs. Serving loads models by the engine's own code; training needs autograd and PEFT,
so it stands on transformers.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quickmatch.core.errors import ModelLoadError
from quickmatch.core.shipped import model_source
from quickmatch.engine.precision import cpu_has
from quickmatch.engine.quantization.folder import read_stored_format

logger = logging.getLogger(__name__)
_PLAIN_ATTENTION_TOKENS = 512


@dataclass(slots=True)
class Loaded:
    """A model in memory. `model` is transformers' or, with an adapter, PEFT's around it."""

    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype

    @property
    def causal_lm(self) -> Any:
        """The transformers model, LoRA layers in place."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def pad_id(self) -> int:
        """A token to pad with; any will do, padding is never attended to."""
        return self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0

    @property
    def max_length(self) -> int:
        """The longest context that the model's positions allow, in tokens."""
        return int(getattr(self.causal_lm.config, "max_position_embeddings", 2048))

    def choose_attention(self, longest_tokens: int) -> None:
        """Take plain matmul attention for short rows in bfloat16 on a CPU.

        There it made the whole step 18 % faster than PyTorch's fused kernel (300 tokens a row);
        it holds all scores in memory, so longer rows keep the fused one.
        """
        short = longest_tokens <= _PLAIN_ATTENTION_TOKENS
        if self.device.type == "cpu" and self.dtype == torch.bfloat16 and short:
            self.causal_lm.set_attn_implementation("eager")

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context to run forwards in: autocast where the weights are not float32.

        LoRA's own weights stay float32; their products are computed in the weights' format.
        """
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled)


def load_base(path: str, *, device: str = "auto", dtype: str = "auto") -> Loaded:
    """Load a base model from a folder, a hub id or the shipped model's name.

    Raises ModelLoadError with the remedy where a part is missing or unknown.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chosen = _device(device)
    number_format, reason = training_dtype(dtype, chosen)
    logger.info("device %s, weights in %s: %s", chosen, number_format, reason)
    source = model_source(path)
    if Path(source).is_dir() and read_stored_format(Path(source)) is not None:
        raise ModelLoadError(
            f"{source} holds quantized weights, which cannot be trained; name the model that they "
            "were made of, and quantize what comes of it"
        )
    with _one_line(source):
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=number_format)
    model.to(chosen)
    model.requires_grad_(False)
    return Loaded(model, tokenizer, chosen, number_format)


def attach_adapter(loaded: Loaded, path: str, *, trainable: bool = False) -> Loaded:
    """Put a PEFT adapter onto a loaded base. Raises ModelLoadError if it does not fit."""
    from peft import PeftModel

    with _one_line(path), quiet_peft():
        model = PeftModel.from_pretrained(loaded.model, path, is_trainable=trainable)
    return Loaded(model, loaded.tokenizer, loaded.device, loaded.dtype)


def training_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the format that products are computed in, and why. name: "auto", or the format."""
    if name != "auto":
        return getattr(torch, name), "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "the GPU computes bfloat16"
        return torch.float32, "the GPU has no bfloat16"
    if cpu_has(torch.bfloat16):
        return torch.bfloat16, "the CPU multiplies bfloat16, twice as fast as float32"
    return torch.float32, "the CPU has no bfloat16 multiplication"


def set_threads(num_threads: int | None) -> int:
    """Use that many cores, by default all that this process may; return how many."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    chosen = num_threads or (len(affinity(0)) if affinity else os.cpu_count() or 1)
    torch.set_num_threads(chosen)
    return chosen


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide a warning that PEFT draws from transformers by reading a name that it renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")
        yield


@contextmanager
def _one_line(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = "check the folder" if Path(source).exists() else "check the name and the network"
        raise ModelLoadError(f"cannot load model {source}: {lines[0]}; {hint}") from error


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
