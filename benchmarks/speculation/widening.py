"""The same model, twice as wide: four times the weights, the same choices.

A model whose weights lie in a cache is not what anybody serves: there every row costs nearly its
share, and a draft's rows are what speculation pays with. To train a larger one takes hours here.
So every hidden number, head and inner number of a trained model is put in twice, and what reads
them has its weights halved: sums are the same but for their rounding, no weight is zero, and a step
reads four times as much memory.

Source: Net2WiderNet (Chen, Goodfellow and Shlens 2016, arXiv 1511.05641), without its noise.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_DOUBLED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "target_hidden_size",
)
_FINAL_NORM = "model.norm.weight"
_EMBEDDING = "model.embed_tokens.weight"
_NUM_FUSED = 3  # hidden states side by side in what a head's first matrix reads
_WEIGHTS = "model.safetensors"


def widened(target: Path, head: Path | None, folder: Path) -> tuple[Path, Path | None]:
    """Return the folders of a target with tied embeddings and of its head, twice as wide.

    Made now (seconds) unless they are there.
    """
    if not folder.is_dir():
        _write(target, folder, _widen_target(load_file(target / _WEIGHTS)))
    if head is None:
        return folder, None
    wide_head = folder / head.name
    if not wide_head.is_dir():
        _write(head, wide_head, _widen_head(load_file(head / _WEIGHTS)))
    return folder, wide_head


def _write(narrow: Path, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for path in narrow.iterdir():
        is_made = path.name in (_WEIGHTS, "config.json") or path.name.startswith("answers-")
        if path.is_file() and not is_made:  # answers are asked anew: roundings may differ
            shutil.copy(path, part / path.name)
    shape = json.loads((narrow / "config.json").read_text(encoding="utf-8"))
    shape |= {name: 2 * shape[name] for name in _DOUBLED if name in shape}
    (part / "config.json").write_text(json.dumps(shape, indent=2), encoding="utf-8")
    save_file({n: t.contiguous() for n, t in tensors.items()}, part / _WEIGHTS, {"format": "pt"})
    part.rename(folder)


def _widen_target(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {name: _widen(name, tensor) for name, tensor in tensors.items()}
    # The output matrix is the embedding: not halved, so that what it reads has to be.
    out[_EMBEDDING] = tensors[_EMBEDDING].repeat(1, 2)
    out[_FINAL_NORM] = tensors[_FINAL_NORM].repeat(2) / 2
    return out


def _widen_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {name: _widen(name, tensor) for name, tensor in tensors.items()}
    out["lm_head.weight"] = _halved(tensors["lm_head.weight"], 1)  # its outputs are tokens
    return out


def _widen(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of numbers side by side, twice; what is no weight stays as it is."""
    if not torch.is_floating_point(tensor):
        return tensor
    if tensor.dim() == 1:
        return tensor.repeat(2)
    if name == "fc.weight":
        num_parts = _NUM_FUSED
    else:  # a head's layer reads the token's embedding and what was fused
        reads_two = name.startswith("midlayer.self_attn") and "o_proj" not in name
        num_parts = 2 if reads_two else 1
    return _halved(tensor, num_parts).repeat(2, 1)


def _halved(matrix: Tensor, num_parts: int) -> Tensor:
    """matrix: [out, in], its inputs in so many parts, each of which comes twice."""
    parts = matrix.chunk(num_parts, dim=1)
    return torch.cat([part.repeat(1, 2) for part in parts], dim=1) / 2
