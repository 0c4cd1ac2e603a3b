"""Reads a PEFT LoRA folder (adapter_config.json, adapter_model.safetensors) for one base model.

Everything is checked before anything is built, so that an adapter is loaded whole or not at
all: kind and options that the engine does not add (DoRA, biases, replaced modules), layers and
shapes against the base, rank against the limit, a truncated file. Each refusal says what was
seen and what to do. Knows nothing of batches; lora.py adds what is read here.

Source of names, patterns and scaling: peft's LoraConfig and its saved state.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.fingerprint import read_base_fingerprint
from quickmatch.engine.folder import check_safetensors
from quickmatch.engine.lora import GROUPS, LoraLayers, LowRank
from quickmatch.engine.model_config import ModelConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_TENSOR = re.compile(
    r"layers\.(\d+)\.(self_attn|mlp)\.([a-z]+)_proj\.lora_(A|B)(?:\.default)?\.weight$"
)
# Initialisations that change the base's own weights: without that change the adapter is wrong.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "lora_ga")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter ready to be added to its base."""

    path: str
    layers: LoraLayers
    rank: int  # the largest of its layers
    num_bytes: int
    targets: tuple[str, ...]  # q, k, v, o, gate, up, down: those it adapts


def read_adapter(
    folder: Path,
    model: ModelConfig,
    *,
    base_fingerprint: str | None,
    max_rank: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Adapter:
    """Load a PEFT folder. Raises ModelLoadError; nothing is kept of an adapter that is refused."""
    config = _read_config(folder)
    made_for = read_base_fingerprint(folder)
    if made_for is not None and base_fingerprint is not None and made_for != base_fingerprint:
        raise ModelLoadError(
            f"{folder} was trained on another base model "
            f"({config.get('base_model_name_or_path') or 'unnamed'}); deploy it on that one"
        )
    pairs = _pairs(folder, _read_tensors(folder), model)
    for (layer, target), pair in pairs.items():
        _check_pair(folder, layer, target, pair, model, max_rank)
    scaled = {key: _scaled(config, *key, pair, dtype, device) for key, pair in pairs.items()}
    layers = [_fuse_layer(scaled, index, model) for index in range(model.num_layers)]
    return Adapter(
        path=str(folder),
        layers=layers,
        rank=max(a.shape[0] for a, _ in scaled.values()),
        num_bytes=sum(t.numel() * t.element_size() for pair in scaled.values() for t in pair),
        targets=tuple(t for t in _GROUP_OF if any(target == t for _, target in scaled)),
    )


@dataclass(slots=True)
class _Pair:
    a: Tensor | None = None  # [rank, in]
    b: Tensor | None = None  # [out, rank]


_GROUP_PARTS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))  # in the order of GROUPS
_GROUP_OF = {target: group for group in GROUPS for target in _GROUP_PARTS[group]}
_Scaled = dict[tuple[int, str], tuple[Tensor, Tensor]]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(
            f"{folder} has no {CONFIG_FILE}; give the folder that peft's save_pretrained wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} is not readable JSON ({error}); save it again") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{path} holds no JSON object; save the adapter again")
    refused = _unsupported(config)
    if refused:
        raise ModelLoadError(
            f"{path}: {refused} is not supported; train plain LoRA on "
            f"{', '.join(f'{t}_proj' for t in _GROUP_OF)}, or merge the adapter into its base"
        )
    return config


def _unsupported(config: dict[str, Any]) -> str | None:
    if config.get("peft_type") != "LORA":
        return f"peft_type {config.get('peft_type')!r}"
    for option in ("use_dora", "modules_to_save", "lora_bias", "layer_replication",
                   "target_parameters", "alora_invocation_tokens", "use_qalora",
                   "fan_in_fan_out", "trainable_token_indices"):  # fmt: skip
        if config.get(option):
            return f"{option}={config[option]!r}"
    if config.get("bias", "none") != "none":
        return f"bias={config['bias']!r}"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        return f"init_lora_weights={init!r} (it changes the base's weights)"
    return None


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = " (it has a pickled adapter_model.bin; save it as safetensors)"
        has_bin = (folder / "adapter_model.bin").is_file()
        raise ModelLoadError(
            f"{folder} has no {WEIGHTS_FILE}{pickled if has_bin else '; save the adapter again'}"
        )
    check_safetensors(path)
    try:
        tensors: dict[str, Tensor] = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path} is damaged ({error}); copy it again") from error
    return tensors


def _pairs(
    folder: Path, tensors: dict[str, Tensor], model: ModelConfig
) -> dict[tuple[int, str], _Pair]:
    pairs: dict[tuple[int, str], _Pair] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.search(name)
        if match is None or match[3] not in _GROUP_OF:
            raise ModelLoadError(
                f"{folder} adapts {name}, which the engine cannot add; "
                f"train LoRA on {', '.join(f'{t}_proj' for t in _GROUP_OF)} only"
            )
        layer = int(match[1])
        if layer >= model.num_layers:
            raise ModelLoadError(
                f"{folder} was trained on another base model: it adapts layer {layer}, the base "
                f"has {model.num_layers} layers; deploy it on the base it was trained on"
            )
        pair = pairs.setdefault((layer, match[3]), _Pair())
        setattr(pair, match[4].lower(), tensor)
    if not pairs:
        raise ModelLoadError(f"{folder} holds no LoRA tensors; save the adapter again")
    return pairs


def _check_pair(
    folder: Path, layer: int, target: str, pair: _Pair, model: ModelConfig, max_rank: int
) -> None:
    where = f"{folder}: {target}_proj of layer {layer}"
    if pair.a is None or pair.b is None:
        half = "lora_A" if pair.a is None else "lora_B"
        raise ModelLoadError(f"{where} has no {half}; save the adapter again")
    rank = pair.a.shape[0]
    in_features, out_features = _sizes(model, target)
    seen, needed = (
        [list(pair.a.shape), list(pair.b.shape)],
        [
            [rank, in_features],
            [out_features, rank],
        ],
    )
    if seen != needed:
        raise ModelLoadError(
            f"{where} has the shapes {seen}, the base needs {needed}; "
            "it was trained on another base model, deploy it on that one"
        )
    if rank > max_rank:
        raise ModelLoadError(f"{where} has rank {rank}; raise max_lora_rank, now {max_rank}")


def _sizes(model: ModelConfig, target: str) -> tuple[int, int]:
    """Return (in_features, out_features) of a layer of the base."""
    outs = {"q": model.q_size, "k": model.kv_size, "v": model.kv_size,
            "o": model.hidden_size, "gate": model.intermediate_size,
            "up": model.intermediate_size, "down": model.hidden_size}  # fmt: skip
    ins = {"o": model.q_size, "down": model.intermediate_size}
    return ins.get(target, model.hidden_size), outs[target]


def _scaled(
    config: dict[str, Any],
    layer: int,
    target: str,
    pair: _Pair,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return A, and B times the scaling: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
    if pair.a is None or pair.b is None:
        raise ModelLoadError(f"{target}_proj of layer {layer} is incomplete")
    rank = pair.a.shape[0]
    module = f"model.layers.{layer}.{'self_attn' if target in 'qkvo' else 'mlp'}.{target}_proj"
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if _matches(pattern, module):
            alpha = float(value)
            break
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    a = pair.a.to(device=device, dtype=dtype)
    return a, (pair.b.float() * scaling).to(device=device, dtype=dtype)


def _matches(pattern: str, module: str) -> bool:
    """As peft does: the pattern is the end of the module's name, from a dot on."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _fuse_layer(scaled: _Scaled, layer: int, model: ModelConfig) -> list[LowRank | None]:
    return [_fuse_group(scaled, layer, _GROUP_PARTS[group], model) for group in GROUPS]


def _fuse_group(
    scaled: _Scaled, layer: int, targets: tuple[str, ...], model: ModelConfig
) -> LowRank | None:
    """Lay the A's of a fused layer side by side and its B's on a block diagonal."""
    found = [scaled[layer, target] for target in targets if (layer, target) in scaled]
    if not found:
        return None
    a = torch.cat([a for a, _ in found])
    outs = [_sizes(model, target)[1] for target in targets]
    b = a.new_zeros(sum(outs), a.shape[0])
    row = column = 0
    for target, out_features in zip(targets, outs, strict=True):
        if (layer, target) in scaled:
            part = scaled[layer, target][1]
            b[row : row + out_features, column : column + part.shape[1]] = part
            column += part.shape[1]
        row += out_features
    return LowRank(a, b)
