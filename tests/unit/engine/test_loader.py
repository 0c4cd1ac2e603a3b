"""Checkpoints with a part wrong inside; fusion of what belongs together."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from quickmatch.core.errors import ConfigError, ModelLoadError
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.fingerprint import model_fingerprint
from quickmatch.engine.loader import load_weights
from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.precision import choose_dtype
from quickmatch.engine.runner import ModelRunner, choose_device
from quickmatch.engine.weights import DecoderWeights

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    return tmp_path


def load(folder: Path) -> DecoderWeights:
    config = read_model_config(folder)
    return load_weights(folder, config, dtype=torch.float32, device=CPU)


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors (dots written as two underscores), or drop those given as None."""
    path = folder / "model.safetensors"
    tensors: dict[str, Any] = load_file(path)
    for name, tensor in changes.items():
        tensors[name.replace("__", ".")] = tensor
    save_file({name: t for name, t in tensors.items() if t is not None}, path)


def test_fused_layers_are_the_parts_side_by_side(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    weights = load(folder)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    layer, name = weights.layers[1], "model.layers.1"
    parts = [x @ tensors[f"{name}.self_attn.{p}_proj.weight"].T for p in "qkv"]
    torch.testing.assert_close(layer.qkv(x), torch.cat(parts, -1))
    parts = [x @ tensors[f"{name}.mlp.{p}_proj.weight"].T for p in ("gate", "up")]
    torch.testing.assert_close(layer.gate_up(x), torch.cat(parts, -1))
    assert weights.num_bytes == sum(t.numel() * 4 for t in tensors.values())


def test_missing_and_misshapen_tensors_are_named(folder: Path) -> None:
    rewrite(folder, model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(ModelLoadError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)
    rewrite(folder, model__layers__1__mlp__up_proj__weight=torch.zeros(24, 8))
    with pytest.raises(ModelLoadError, match=r"shape \[24, 8\], config\.json says \[24, 16\]"):
        load(folder)


def test_lm_head_is_needed_unless_tied(folder: Path) -> None:
    rewrite(folder, lm_head__weight=None)
    with pytest.raises(ModelLoadError, match=r"no tensor lm_head\.weight"):
        load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    weights = load(folder)
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights.lm_head(x), x @ weights.embedding.T)


def test_truncated_file_through_the_runner(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ModelLoadError, match="is truncated: it has"):
        ModelRunner(EngineConfig(model=str(folder), num_threads=1))


def test_fingerprint_follows_the_weights(folder: Path) -> None:
    first = model_fingerprint(folder)
    assert model_fingerprint(folder) == first
    rewrite(folder, model__norm__weight=torch.full((16,), 2.0))
    assert model_fingerprint(folder) != first


def test_device_and_dtype_resolve() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(ConfigError, match="use auto, cpu or cuda"):
        choose_device("gpu!")
    assert choose_dtype("auto", None, CPU) == torch.float32
    assert choose_dtype("auto", "float32", CPU) == torch.float32
    assert choose_dtype("bfloat16", "float32", CPU) == torch.bfloat16
    assert choose_dtype("auto", "bfloat16", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("auto", "bfloat16", CPU, has_native=True) == torch.bfloat16
    assert choose_dtype("auto", "float16", CPU, has_native=True) == choose_dtype(
        "auto", "float16", CPU
    )
    with pytest.raises(ModelLoadError, match="dtype float8_e4m3fn"):
        choose_dtype("auto", "float8_e4m3fn", CPU)
