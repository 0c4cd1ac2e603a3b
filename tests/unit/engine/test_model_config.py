"""config.json in its several spellings, and the refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.model_config import parse_model_config, read_model_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


def changed(architecture: str = "LlamaForCausalLM", **changes: Any) -> dict[str, Any]:
    return {**LLAMA, "architectures": [architecture], **changes}


def test_silent_keys_take_the_familys_defaults() -> None:
    config = parse_model_config(LLAMA)
    assert (config.head_dim, config.max_model_len, config.rope.theta) == (8, 2048, 10000.0)
    assert config.windows == (None,) * 4
    mistral = parse_model_config(changed("MistralForCausalLM"))
    assert (mistral.max_model_len, mistral.windows) == (131072, (4096,) * 4)
    qwen3 = parse_model_config(changed("Qwen3ForCausalLM"))
    assert (qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias) == (128, True, False)
    qwen2 = parse_model_config(changed("Qwen2ForCausalLM"))
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm) == (True, False, False)


def test_old_and_new_rope_spelling_agree() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = changed(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})
    older = changed(rope_theta=5e5, rope_scaling={"type": "llama3", **scaling})
    new = changed(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    assert parse_model_config(old) == parse_model_config(older) == parse_model_config(new)
    assert parse_model_config(new).rope.kind == "llama3"
    assert parse_model_config(new).rope.original_max_len == 8192


def test_windows_of_qwen() -> None:
    off = changed("Qwen2ForCausalLM", sliding_window=16, max_window_layers=2)
    assert parse_model_config(off).windows == (None,) * 4
    upper = {**off, "use_sliding_window": True}
    assert parse_model_config(upper).windows == (None, None, 16, 16)
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert parse_model_config({**upper, "layer_types": kinds}).windows == (16, None, None, 16)


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (changed("GPT2LMHeadModel"), "GPT2LMHeadModel, which the engine cannot run; supported: L"),
        ({**LLAMA, "architectures": None, "model_type": "bert"}, "none (model_type bert)"),
        (changed(hidden_act="gelu"), "hidden_act is 'gelu'; supported: 'silu'"),
        (changed(vocab_size=None), "vocab_size is missing"),
        (changed(num_hidden_layers="8"), "num_hidden_layers is '8'"),
        (changed(num_key_value_heads=3), "8 is not a multiple of num_key_value_heads 3"),
        (changed(rope_scaling={"type": "dynamic", "factor": 2.0}), "rope type 'dynamic' is not"),
        (changed(rope_scaling={"type": "linear"}), "needs a factor"),
        (changed(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    ],
)
def test_refusals_name_what_was_seen(raw: dict[str, Any], part: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        parse_model_config(raw, source="m/config.json")
    assert part in caught.value.message
    assert "m/config.json" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_damaged_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelLoadError, match="download the model again"):
        read_model_config(tmp_path)


def test_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    assert read_model_config(tmp_path) == parse_model_config(LLAMA)
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        read_model_config(tmp_path / "absent")
