"""Tiny random models of each supported architecture, written to disk as transformers writes them.

Weights are drawn wide (initializer_range 0.15), so that attention is peaked and two tokens
rarely tie: an error in a mask or a rotation then shows in the logits at once.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 199
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_ROPE = {"rope_theta": 10000.0}
_KINDS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama-biased": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama-mha": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 6, "head_dim": 16}),
    "llama-linear": (
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 4.0}},
    ),
    "llama-llama3": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "rope_parameters": {
                "rope_theta": 500.0,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen2-yarn": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {
            "rope_parameters": {
                **_ROPE,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 9}),
    "mistral-full": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen2-upper-window": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
}
KINDS = tuple(_KINDS)


def make_model(kind: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return a random model in float32; biases and norms are random too, unlike at birth."""
    config_class, model_class, options = _KINDS[kind]
    torch.manual_seed(seed)
    config = config_class(**{**_SHAPE, **options, **changes}, attn_implementation="eager")
    model: PreTrainedModel = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def save_model(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """Write a model folder that the engine accepts; the tokenizer is a stub."""
    model.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder
