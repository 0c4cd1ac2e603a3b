"""Writes a model folder whose linear layers are in few bits, as compressed-tensors packs them.

Owns what is in such a folder: config.json with its quantization_config, one model.safetensors,
the tokenizer's and other small files as they were, quantization.json, which says how it was made,
and the source's fingerprint, by which its adapters fit. This engine, vLLM and transformers read it.
The packed weights are held in memory until the file is written.

Invariant: the destination is whole or not there. Everything is written to a folder beside it,
which takes its name at the end.

Source: compressed-tensors' pack-quantized and mxfp4-pack-quantized formats and quantization config.
"""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quickmatch.core.errors import ConfigError
from quickmatch.engine.fingerprint import write_base_fingerprint
from quickmatch.engine.folder import INDEX_FILE, WEIGHTS_FILE, weight_files
from quickmatch.engine.quantization import mxfp4
from quickmatch.engine.quantization.formats import QuantizedTensor, WeightFormat
from quickmatch.engine.quantization.packing import pack

NOTE_FILE = "quantization.json"
_COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*")
_LEFT_OUT = ("config.json", INDEX_FILE, NOTE_FILE)
_HALF_ERROR = 2.0**-11  # of rounding a normal number to float16


def write_quantized(
    source: Path,
    destination: Path,
    form: WeightFormat,
    tensors: Iterable[tuple[str, QuantizedTensor]],
    note: Mapping[str, Any],
) -> None:
    """Write a copy of the model in `source` with these linear layers quantized.

    tensors: names of layers, as "model.layers.0.mlp.up_proj", and their weights; gone through
    once. All that they do not name is copied as it is. note: how it was made, as JSON.
    Raises ConfigError if the destination is not empty or cannot be written.
    """
    check_destination(destination)
    partial = destination.parent / f".{destination.name}.{os.getpid()}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        group_sizes = _write_weights(source, partial / WEIGHTS_FILE, tensors)
        _write_config(source, partial, form, group_sizes)
        _copy_others(source, partial)
        _write_json(partial / NOTE_FILE, dict(note))
        write_base_fingerprint(partial, source)
        if destination.exists():
            destination.rmdir()
        partial.rename(destination)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot write {destination}: {reason}; free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_destination(destination: Path) -> None:
    """Raise ConfigError unless the folder is empty or does not exist."""
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if destination.exists():
        raise ConfigError(
            f"{destination} exists and is not an empty folder; choose another or delete it first"
        )


def packed_tensors(weight: QuantizedTensor) -> dict[str, Tensor]:
    """Return a layer's tensors by their last names."""
    if weight.is_float:
        words = pack(weight.codes, weight.bits).view(torch.uint8)
        scales = mxfp4.to_exponents(weight.scales)
        return {"weight_packed": words, "weight_scale": scales}
    scales = weight.scales.half()
    # float16 loses digits of very small scales; the few layers that have some keep float32.
    if bool(((scales.float() - weight.scales).abs() > weight.scales * _HALF_ERROR).any()):
        scales = weight.scales
    packed = {
        "weight_packed": pack(weight.codes, weight.bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(weight.shape),
    }
    if weight.zeros is not None:
        packed["weight_zero_point"] = pack(weight.zeros.T, weight.bits).T.contiguous()
    return packed


def _write_weights(
    source: Path, path: Path, tensors: Iterable[tuple[str, QuantizedTensor]]
) -> dict[str, int]:
    """Write all tensors; return the group size of each quantized layer."""
    kept: dict[str, Tensor] = {}
    group_sizes: dict[str, int] = {}
    for name, weight in tensors:
        group_sizes[name] = weight.group_size
        kept |= {f"{name}.{last}": one for last, one in packed_tensors(weight).items()}
    replaced = {f"{name}.weight" for name in group_sizes}
    for file in weight_files(source):
        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                if name not in replaced:
                    kept[name] = opened.get_tensor(name)
    save_file(kept, path, metadata={"format": "pt"})
    return group_sizes


def _write_config(
    source: Path, folder: Path, form: WeightFormat, group_sizes: Mapping[str, int]
) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantization_config(form, group_sizes)
    _write_json(folder / "config.json", config)


def quantization_config(form: WeightFormat, group_sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return config.json's quantization_config for layers with these group sizes.

    Where all are equal, "Linear" names them all; otherwise each group of layers is named in full,
    since vLLM lets "Linear" win over the parts of a layer that it fuses.
    """
    layers: dict[int, list[str]] = defaultdict(list)
    for name, size in group_sizes.items():
        layers[size].append(name)
    scale_dtype = {"scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    groups: dict[str, Any] = {
        f"group_{i}": {
            "targets": names if len(layers) > 1 else ["Linear"],
            "weights": {
                "num_bits": form.bits,
                "type": "float" if form.is_float else "int",
                "symmetric": form.is_symmetric,
                "strategy": "group",
                "group_size": size,
                "dynamic": False,
                "actorder": None,
                "block_structure": None,
                "observer": "minmax",
                "observer_kwargs": {},
                **(scale_dtype if form.is_float else {}),
            },
            "input_activations": None,
            "output_activations": None,
        }
        for i, (size, names) in enumerate(sorted(layers.items(), reverse=True))
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "mxfp4-pack-quantized" if form.is_float else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _copy_others(source: Path, folder: Path) -> None:
    for pattern in _COPIED:
        for file in source.glob(pattern):
            if file.is_file() and file.name not in _LEFT_OUT:
                shutil.copyfile(file, folder / file.name)


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")
