"""What a decoder's shape is: the part of a Hugging Face config.json that inference needs.

One frozen record parameterises one decoder for Llama, Mistral, Qwen2 and Qwen3, so that the
model code asks `config.qk_norm` and never for a model's name. Knows no tensors and no files
but config.json. Keys that a checkpoint leaves out take the value that transformers gives them
for that architecture, which is why the defaults below differ from family to family.

Source: the configuration classes of transformers (both the older `rope_scaling` and the
`rope_parameters` of version 5 are read).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickmatch.core.errors import ModelLoadError

ROPE_KINDS = ("default", "linear", "llama3", "yarn")

# What transformers assumes where config.json is silent, for each family that is supported.
_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"max_position_embeddings": 2048},
    "MistralForCausalLM": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "Qwen2ForCausalLM": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "Qwen3ForCausalLM": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
    },
}
SUPPORTED_ARCHITECTURES = tuple(_FAMILY_DEFAULTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """How positions turn into rotations; `kind` says which of the fields below it count."""

    kind: str = "default"  # one of ROPE_KINDS
    theta: float = 10000.0
    factor: float = 1.0
    original_max_len: int = 0  # llama3, yarn: the context before it was stretched
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: inferred from factor and the mscales
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and switches of one decoder. Lengths are tokens; `windows` has one entry a layer."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    rms_norm_eps: float
    rope: RopeConfig
    windows: tuple[int | None, ...]  # tokens a layer sees, itself included; None: all before it
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str | None = None  # of the checkpoint, where config.json names it

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together; the same for values."""
        return self.num_kv_heads * self.head_dim

    @property
    def kv_numbers_per_token(self) -> int:
        """How many numbers one token's keys and values are, over all layers."""
        return 2 * self.num_layers * self.kv_size


def read_model_config(folder: Path) -> ModelConfig:
    """Parse folder/config.json. Raises ModelLoadError where it is missing, broken, unsupported."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(
            f"{folder} has no config.json; give a Hugging Face model folder or download it again"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{path} is not readable JSON ({error}); download the model again"
        ) from error
    if not isinstance(raw, dict):
        raise ModelLoadError(f"{path} holds no JSON object; download the model again")
    return parse_model_config(raw, source=str(path))


def parse_model_config(raw: Mapping[str, Any], *, source: str = "config.json") -> ModelConfig:
    """Turn config.json's content into a ModelConfig; `source` names it in errors."""
    architecture = _architecture(raw, source)
    values = {**_FAMILY_DEFAULTS[architecture], **raw}
    _refuse_unsupported(values, source)
    size = {name: _positive_int(values, name, source) for name in _REQUIRED_SIZES}
    num_heads = size["num_attention_heads"]
    num_layers = size["num_hidden_layers"]
    num_kv_heads = int(values.get("num_key_value_heads") or num_heads)
    if num_heads % num_kv_heads:
        raise ModelLoadError(
            f"{source}: num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    max_model_len = _positive_int(values, "max_position_embeddings", source)
    attention_bias = bool(values.get("attention_bias", False))
    is_qwen2 = architecture == "Qwen2ForCausalLM"
    has_bias = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and attention_bias
    return ModelConfig(
        architecture=architecture,
        vocab_size=size["vocab_size"],
        hidden_size=size["hidden_size"],
        intermediate_size=size["intermediate_size"],
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=int(values.get("head_dim") or size["hidden_size"] // num_heads),
        max_model_len=max_model_len,
        rms_norm_eps=float(values.get("rms_norm_eps", 1e-6)),
        rope=_rope(values, max_model_len, source),
        windows=_windows(values, architecture, num_layers),
        tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
        qkv_bias=is_qwen2 or has_bias,
        o_bias=has_bias,
        mlp_bias=architecture == "LlamaForCausalLM" and bool(values.get("mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        dtype=_dtype(values),
    )


_REQUIRED_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def _architecture(raw: Mapping[str, Any], source: str) -> str:
    names = raw.get("architectures") or []
    for name in names:
        if name in _FAMILY_DEFAULTS:
            return str(name)
    seen = ", ".join(map(str, names)) or f"none (model_type {raw.get('model_type', 'unknown')})"
    raise ModelLoadError(
        f"{source} names the architecture {seen}, which the engine cannot run; "
        f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}; serve others through a vLLM backend"
    )


def _positive_int(values: Mapping[str, Any], name: str, source: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        seen = "missing" if value is None else repr(value)
        raise ModelLoadError(f"{source}: {name} is {seen}; a positive whole number is needed")
    return value


def _refuse_unsupported(values: Mapping[str, Any], source: str) -> None:
    activation = values.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelLoadError(f"{source}: hidden_act is {activation!r}; supported: 'silu'")


def _windows(
    values: Mapping[str, Any], architecture: str, num_layers: int
) -> tuple[int | None, ...]:
    """Return each layer's sliding window. Mistral slides everywhere, Qwen in its upper layers."""
    window = values.get("sliding_window")
    if architecture == "MistralForCausalLM":
        return (window,) * num_layers
    if architecture == "LlamaForCausalLM" or not values.get("use_sliding_window", False):
        return (None,) * num_layers
    window = window if "sliding_window" in values else 4096
    kinds = values.get("layer_types")
    if kinds is None:
        first = int(values.get("max_window_layers", 28))
        return tuple(window if i >= first else None for i in range(num_layers))
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _dtype(values: Mapping[str, Any]) -> str | None:
    value = values.get("dtype") or values.get("torch_dtype")
    return None if value is None else str(value).removeprefix("torch.")


def _rope(values: Mapping[str, Any], max_model_len: int, source: str) -> RopeConfig:
    # transformers 5 writes all into `rope_parameters`; before it, `rope_theta` stood beside an
    # optional `rope_scaling`, whose kind was called "type" at first.
    raw = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
    kind = str(raw.get("rope_type") or raw.get("type") or "default")
    if kind not in ROPE_KINDS:
        raise ModelLoadError(
            f"{source}: rope type {kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}"
        )
    partial = raw.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ModelLoadError(
            f"{source}: partial_rotary_factor is {partial}; only models that rotate the whole "
            "head are supported"
        )
    original = raw.get("original_max_position_embeddings") or max_model_len
    factor = raw.get("factor")
    if factor is None:
        if kind in ("linear", "llama3"):
            raise ModelLoadError(f"{source}: rope type {kind!r} needs a factor, and has none")
        factor = max_model_len / original if kind == "yarn" else 1.0
    theta = raw.get("rope_theta") or values.get("rope_theta") or 10000.0
    optional = {
        name: float(raw[name])
        for name in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow",
                     "attention_factor", "mscale", "mscale_all_dim")
        if raw.get(name) is not None
    }  # fmt: skip
    return RopeConfig(
        kind=kind,
        theta=float(theta),
        factor=float(factor),
        original_max_len=int(original),
        truncate=bool(raw.get("truncate", True)),
        **optional,
    )
