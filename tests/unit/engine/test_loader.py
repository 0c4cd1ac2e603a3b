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
from quickmatch.engine.device import choose_device
from quickmatch.engine.fingerprint import model_fingerprint
from quickmatch.engine.loader import load_weights
from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.precision import choose_dtype
from quickmatch.engine.runner import ModelRunner
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


@pytest.mark.parametrize("stored", ["fp8", "int8"])
def test_an_output_layer_in_few_bits_keeps_its_scales(folder: Path, stored: str) -> None:
    own = load_file(folder / "model.safetensors")["lm_head.weight"]
    spread = own * torch.linspace(0.1, 10, len(own))[:, None]  # each row has a scale of its own
    most, dtype = (448.0, torch.float8_e4m3fn) if stored == "fp8" else (127.0, torch.int8)
    scales = spread.abs().amax(1, keepdim=True) / most
    codes = spread / scales
    codes = (codes if stored == "fp8" else codes.round()).to(dtype)
    _say_quantized(folder, "float" if stored == "fp8" else "int")
    rewrite(folder, lm_head__weight=codes, lm_head__weight_scale=scales)
    found = load(folder).lm_head(torch.eye(16)).T
    error = (found - spread).norm(dim=1) / spread.norm(dim=1)
    assert error.max() < 0.05


def test_embeddings_and_norms_in_few_bits_are_refused(folder: Path) -> None:
    _say_quantized(folder, "float")
    tensors = load_file(folder / "model.safetensors")
    codes = tensors["model.embed_tokens.weight"].to(torch.float8_e4m3fn)
    rewrite(folder, model__embed_tokens__weight=codes)
    with pytest.raises(ModelLoadError, match=r"embed_tokens.weight .*float8_e4m3fn, without the"):
        load(folder)


def _say_quantized(folder: Path, kind: str) -> None:
    """Let config.json say that linear layers are in 8 bits, a scale a row."""
    weights = {"num_bits": 8, "type": kind, "strategy": "channel", "symmetric": True}
    how = {
        "quant_method": "compressed-tensors",
        "format": f"{kind}-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": how}
    file.write_text(json.dumps(config))


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
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=1"):
        choose_device("cuda:1")
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
