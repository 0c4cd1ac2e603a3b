"""A trained head on disk: one config.json and its weights, in either of two formats.

`eagle3` is SGLang's and SpecForge's folder, `speculators` is vLLM's; both are read, and both can be
written. They differ in config.json (head_formats.py) and in what they call the layer, `midlayer.`
or `layers.0.`.

Knows nothing of engines. What is read is checked whole: safetensors or, where a folder has none,
pytorch_model.bin, of which tensors alone are taken. A folder is written beside and renamed.
"""

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from quickmatch.core.errors import ConfigError, ModelLoadError
from quickmatch.engine.folder import (
    PICKLED_FILE,
    WEIGHTS_FILE,
    check_safetensors,
    weight_files,
)
from quickmatch.engine.speculation.head_config import HeadConfig, check_tensors
from quickmatch.engine.speculation.head_formats import (
    eagle_json,
    parse_head_config,
    speculators_json,
)

HeadFormat = Literal["eagle3", "speculators"]
_MAPS = ("d2t", "t2d")


def read_head(folder: Path) -> tuple[HeadConfig, dict[str, Tensor]]:
    """Return a head's shape and its tensors under EAGLE-3's names, in the file's dtype.

    d2t and t2d are always there: a head of the whole vocabulary maps every token to itself.
    Raises ModelLoadError on anything that is missing, damaged, unknown or does not fit together.
    """
    config = parse_head_config(_read_json(folder), str(folder / "config.json"))
    tensors = {_eagle_name(name): tensor for name, tensor in _read_tensors(folder).items()}
    if "d2t" not in tensors and config.draft_vocab_size == config.vocab_size:
        tensors["d2t"] = torch.zeros(config.vocab_size, dtype=torch.int64)
    if "t2d" not in tensors and "d2t" in tensors:
        tensors["t2d"] = _reached(tensors["d2t"], config.vocab_size)
    check_tensors(config, tensors, str(folder))
    return config, tensors


def write_head(
    folder: Path,
    config: HeadConfig,
    tensors: Mapping[str, Tensor],
    *,
    format: HeadFormat,
    target_name: str,
    target_architecture: str,
    num_draft_tokens: int = 4,
) -> None:
    """Write a head; the folder appears whole or not at all.

    target_name: path or hub id of the target, which vLLM loads for a `speculators` folder.
    num_draft_tokens: how deep vLLM drafts with such a folder unless told otherwise.
    Raises ConfigError where the folder is not empty, ModelLoadError on tensors that are not a
    head's, OSError where the disk is full.
    """
    check_tensors(config, tensors, "the head to write")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} exists and is not empty; give a new folder")
    if not config.aux_layers:
        raise ConfigError("the head's aux_layers are empty; name the layers that it reads")
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if config.draft_vocab_size == config.vocab_size:  # vLLM then refuses the maps
        kept = {name: tensor for name, tensor in kept.items() if name not in _MAPS}
    dtype = str(tensors["fc.weight"].dtype).removeprefix("torch.")
    if format == "eagle3":
        written = eagle_json(config, dtype)
    else:
        kept = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in kept.items()}
        written = speculators_json(
            config,
            dtype,
            target_name=target_name,
            target_architecture=target_architecture,
            num_draft_tokens=num_draft_tokens,
        )
    _write(folder, written, kept)


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(
            f"{folder} has no config.json; give the folder of an EAGLE-3 head"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} is not readable JSON ({error}); export it again") from error
    if not isinstance(raw, dict):
        raise ModelLoadError(f"{path} holds no JSON object; export the head again")
    return raw


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / PICKLED_FILE).is_file() and not any(folder.glob("*.safetensors*")):
        return _read_pickled(folder / PICKLED_FILE)
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        check_safetensors(path)
        try:
            tensors.update(load_file(str(path)))
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{path} is damaged ({error}); copy it again") from error
    return tensors


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelLoadError(
            f"{path} is damaged or holds more than tensors ({reason}); copy it again, or convert "
            "it to safetensors"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise ModelLoadError(f"{path} is no table of tensors; export the head again")
    return loaded


def _eagle_name(name: str) -> str:
    return name.replace("layers.0.", "midlayer.") if name.startswith("layers.0.") else name


def _reached(d2t: Tensor, vocab_size: int) -> Tensor:
    """Return t2d. Offsets out of range are left for check_tensors to name."""
    reached = torch.zeros(vocab_size, dtype=torch.bool)
    reached[(torch.arange(len(d2t)) + d2t.long()).clamp(0, vocab_size - 1)] = True
    return reached


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(tensors, str(partial / WEIGHTS_FILE), metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
