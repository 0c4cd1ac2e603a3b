"""Made-up LoRA folders for a made-up model: small random weights on every projection."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.models import Shape, weight_shapes

_RANK = 8
_STD = 0.02


def make_adapters(shape: Shape, model: Path, count: int, *, seed: int) -> list[Path]:
    """Return so many PEFT folders beside the model's weights; made now unless they are there."""
    folders = [model / "adapters" / f"{index:02}" for index in range(count)]
    for index, folder in enumerate(folders):
        if not folder.is_dir():
            _write(folder, shape, seed * 1000 + index)
    return folders


def _write(folder: Path, shape: Shape, seed: int) -> None:
    draft = folder.with_suffix(".part")  # renamed when whole: a broken run leaves no folder
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    targets: set[str] = set()
    for name, size in weight_shapes(shape):
        if not name.endswith("_proj.weight"):
            continue
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        targets.add(prefix.rpartition(".")[2])
        for letter, dims in (("A", (_RANK, size[1])), ("B", (size[0], _RANK))):
            drawn = torch.randn(dims, generator=generator) * _STD
            tensors[f"{prefix}.lora_{letter}.weight"] = drawn.to(torch.bfloat16)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": _RANK,
        "lora_alpha": 2 * _RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
    }
    (draft / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, draft / "adapter_model.safetensors", {"format": "pt"})
    draft.rename(folder)
