"""What a head's config.json says, in the two formats that other engines read.

`eagle3` is SGLang's and SpecForge's format, `speculators` is vLLM's. They number the layers of the
target that the head reads differently:

- `speculators`: the state that enters layer i, as HeadConfig does;
- `eagle3`, inside `eagle_config`: the state that layer i puts out, one less. vLLM takes a number
  found there as the first kind, so that a folder with it alone drafts worse there than in SGLang.
  vLLM looks at a key of the same name at the top first, so that key is written too, in its sense.

Turns JSON into a HeadConfig and back; knows no files and no tensors.

Sources: vllm 0.32 (llama_eagle3.py, configs/speculators, gpu_model_runner.py), sglang
(llama.py set_eagle3_layers_to_capture), speculators (models/eagle3).
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.model_config import ModelConfig, RopeConfig, parse_model_config
from quickmatch.engine.speculation.head_config import HeadConfig

_AUX_LAYERS = "eagle_aux_hidden_state_layer_ids"
_EAGLE_ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")
_UNSUPPORTED = ("norm_before_fc", "fc_norm", "norm_output")
_ROPE_OPTIONS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim",
             "truncate"),
}  # fmt: skip


def parse_head_config(raw: Mapping[str, Any], source: str) -> HeadConfig:
    """Read either format; `source` names the file in errors. Raises ModelLoadError."""
    if "speculators_model_type" in raw:
        return _parse_speculators(raw, source)
    return _parse_eagle(raw, source)


def eagle_json(config: HeadConfig, dtype: str) -> dict[str, Any]:
    """Return the config.json of an `eagle3` folder."""
    put_out_by = [layer - 1 for layer in config.aux_layers]
    return {
        "architectures": [_EAGLE_ARCHITECTURES[0]],
        **_layer_keys(config, dtype),
        **_head_keys(config),
        "eagle_config": {"use_aux_hidden_state": True, _AUX_LAYERS: put_out_by},
    }


def speculators_json(
    config: HeadConfig,
    dtype: str,
    *,
    target_name: str,
    target_architecture: str,
    num_draft_tokens: int,
) -> dict[str, Any]:
    """Return the config.json of a `speculators` folder."""
    layer = _layer_keys(config, dtype)
    if config.num_aux != 3:
        layer["num_aux_hidden_states"] = config.num_aux  # vLLM assumes three
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "transformer_layer_config": layer,
        **_head_keys(config),
        "norm_before_fc": False,
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [
                {"proposal_type": "greedy", "speculative_tokens": num_draft_tokens}
            ],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": target_name, "architectures": [target_architecture]},
        },
        "torch_dtype": dtype,
    }


def _parse_eagle(raw: Mapping[str, Any], source: str) -> HeadConfig:
    names = raw.get("architectures") or []
    if not any(name in _EAGLE_ARCHITECTURES for name in names):
        seen = ", ".join(map(str, names)) or "none"
        raise ModelLoadError(
            f"{source} names the architecture {seen}; a head is {_EAGLE_ARCHITECTURES[0]} or has "
            "speculators_model_type eagle3"
        )
    inner = raw.get("eagle_config") or {}
    if not inner.get("use_aux_hidden_state", True):
        raise ModelLoadError(
            f"{source}: use_aux_hidden_state is false, which EAGLE-1 and 2 mean; "
            "train an EAGLE-3 head"
        )
    layers = _aux_layers(raw, source)
    if not layers:
        layers = tuple(layer + 1 for layer in _aux_layers(inner, source, lowest=-1))
    return _head_config(raw, {**inner, **raw}, layers, source)


def _parse_speculators(raw: Mapping[str, Any], source: str) -> HeadConfig:
    kind = raw["speculators_model_type"]
    if kind != "eagle3":
        raise ModelLoadError(f"{source}: speculators_model_type is {kind!r}; supported: 'eagle3'")
    layer = raw.get("transformer_layer_config")
    if not isinstance(layer, dict):
        raise ModelLoadError(f"{source} has no transformer_layer_config; export the head again")
    if layer.get("model_type", "llama") != "llama":
        raise ModelLoadError(
            f"{source}: transformer_layer_config is a {layer['model_type']} layer; supported: llama"
        )
    if "norm_before_residual" not in raw:
        raise ModelLoadError(
            f"{source} does not say norm_before_residual, of which vLLM and speculators assume "
            "different things; add what the head was trained with"
        )
    return _head_config(layer, raw, _aux_layers(raw, source), source)


def _head_config(
    layer: Mapping[str, Any], options: Mapping[str, Any], aux_layers: tuple[int, ...], source: str
) -> HeadConfig:
    """layer: the keys of a Llama config; options: the keys that only heads have."""
    shape = parse_model_config({**layer, "architectures": ["LlamaForCausalLM"]}, source=source)
    _refuse_unsupported(shape, options, source)
    return HeadConfig(
        vocab_size=shape.vocab_size,
        draft_vocab_size=int(options.get("draft_vocab_size") or shape.vocab_size),
        target_hidden_size=int(options.get("target_hidden_size") or shape.hidden_size),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_model_len=shape.max_model_len,
        rms_norm_eps=shape.rms_norm_eps,
        rope=shape.rope,
        aux_layers=aux_layers,
        norm_before_residual=bool(options.get("norm_before_residual", False)),
    )


def _aux_layers(raw: Mapping[str, Any], source: str, *, lowest: int = 0) -> tuple[int, ...]:
    layers = raw.get(_AUX_LAYERS) or []
    is_good = isinstance(layers, list) and all(type(i) is int and i >= lowest for i in layers)
    if not is_good or any(a >= b for a, b in pairwise(layers)):
        raise ModelLoadError(
            f"{source}: {_AUX_LAYERS} is {layers}; a list of ascending layers is needed"
        )
    return tuple(layers)


def _refuse_unsupported(shape: ModelConfig, options: Mapping[str, Any], source: str) -> None:
    seen = [name for name in _UNSUPPORTED if options.get(name)]
    seen += ["attention_bias"] if shape.qkv_bias else []
    seen += ["mlp_bias"] if shape.mlp_bias else []
    if seen:
        raise ModelLoadError(
            f"{source}: {seen[0]} is set, which the engine's head does not have; train without it"
        )
    if shape.num_layers != 1:
        raise ModelLoadError(
            f"{source}: num_hidden_layers is {shape.num_layers}; heads of one layer are supported"
        )


def _layer_keys(config: HeadConfig, dtype: str) -> dict[str, Any]:
    """The keys of a Llama config of one layer, as both old and new transformers read them."""
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_model_len,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": _rope_scaling(config.rope),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }


def _rope_scaling(rope: RopeConfig) -> dict[str, Any] | None:
    if rope.kind == "default":
        return None
    values = {name: getattr(rope, name) for name in _ROPE_OPTIONS[rope.kind]}
    return {
        "rope_type": rope.kind,
        "original_max_position_embeddings": rope.original_max_len,
        **{name: value for name, value in values.items() if value is not None},
    }


def _head_keys(config: HeadConfig) -> dict[str, Any]:
    return {
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden_size,
        "norm_before_residual": config.norm_before_residual,
        _AUX_LAYERS: list(config.aux_layers),
    }
