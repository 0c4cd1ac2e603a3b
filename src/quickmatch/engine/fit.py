"""Whether a model, an adapter or a head fits the free memory, told before its weights are read.

What is told is a least: scales, tables, adapters and what a step computes come on top. So a model
that passes may still run out; on a card that is told with the same remedies.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from quickmatch.core.errors import ConfigError, ModelLoadError
from quickmatch.engine.folder import read_safetensors_header, weight_files
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.quantization.folder import read_stored_format
from quickmatch.engine.quantization.formats import WeightFormat

_FLOATS = {"F64", "F32", "F16", "BF16"}  # in a safetensors header
_OUTPUT = "lm_head.weight"
_ENDS = {"model.embed_tokens.weight", _OUTPUT}
_REMEDY = "take --quantization int8 or int4, or a smaller model"


def weight_bytes(
    folder: Path, model: ModelConfig, *, dtype: torch.dtype, form: WeightFormat | None
) -> int:
    """Return what the weights take at least, once they are loaded.

    form: what linear layers are rounded to while they are read. Raises ModelLoadError on a folder
    that cannot be read.
    """
    is_quantized = form is not None or read_stored_format(folder) is not None
    total = 0.0
    for path in weight_files(folder):
        for name, entry in read_safetensors_header(path).items():
            numbers = math.prod(entry["shape"])
            if name == _OUTPUT and model.tie_word_embeddings:
                continue  # the embedding is used
            if entry["dtype"] not in _FLOATS:  # codes stay what they are
                begin, end = entry["data_offsets"]
                total += end - begin
            elif is_quantized and name in _ENDS:
                total += numbers  # the output layer is in 8 bits, and so is an embedding tied to it
            elif form is not None and len(entry["shape"]) == 2:
                total += numbers * form.bits / 8
            else:
                total += numbers * dtype.itemsize
    return int(total)


def check_fit(num_bytes: int, free_bytes: int, model: str, device: torch.device) -> None:
    """Raise ConfigError if weights of so many bytes leave no memory free."""
    if num_bytes >= free_bytes:
        where = "this machine" if device.type == "cpu" else "the card"
        raise ConfigError(
            f"the weights of {model} take {num_bytes / 1e9:.2f} GB, and {where} has "
            f"{free_bytes / 1e9:.2f} GB free; {_REMEDY}"
        )


def check_room(folder: Path, free_bytes: int) -> None:
    """Raise ConfigError if an adapter or a head takes more than what may still be used.

    free_bytes: what is free on the machine, less what has to stay free.
    """
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    num_bytes = sum(file.stat().st_size for file in files)
    if num_bytes > max(0, free_bytes):
        raise ConfigError(
            f"{folder} takes {num_bytes / 1e6:.0f} MB, and {max(0, free_bytes) / 1e6:.0f} MB are "
            "free beyond engine.min_free_memory_bytes; unload adapters or drafts, or lower "
            "engine.max_adapters"
        )


@contextmanager
def told_with_remedy(model: str) -> Iterator[None]:
    """Raise ModelLoadError where a card's memory runs out while a model is loaded."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"the card's memory ran out while {model} was loaded; lower kv_memory_fraction (or "
            f"kv_memory_bytes), or {_REMEDY} ({str(error).splitlines()[0]})"
        ) from error
