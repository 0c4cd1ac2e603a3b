"""Random model folders: the same from the same seed, and readable by our own config parser."""

import math
from dataclasses import replace

import torch

from benchmarks.models import (
    LLAMA_15M,
    QWEN3_600M,
    config_json,
    make_model,
    random_weights,
    weight_shapes,
)
from quickmatch.engine.model_config import parse_model_config, read_model_config

_TINY = replace(
    LLAMA_15M, name="tiny", hidden_size=8, intermediate_size=16, num_layers=1, vocab_size=300,
    num_heads=2, num_kv_heads=1, head_dim=4,
)  # fmt: skip


def test_shape_is_what_its_name_says():
    total = sum(math.prod(size) for _, size in weight_shapes(LLAMA_15M))
    assert 15e6 < total < 16e6


def test_weights_repeat_with_the_seed_and_differ_between_seeds():
    first, again, other = (random_weights(_TINY, seed) for seed in (1, 1, 2))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert first[name].dtype == torch.bfloat16


def test_configs_are_understood():
    qwen = parse_model_config(config_json(QWEN3_600M))
    assert qwen.qk_norm
    assert (qwen.num_kv_heads, qwen.head_dim) == (8, 128)


def test_folder_is_complete_and_made_once(tmp_path):
    folder = make_model(_TINY, seed=3, root=tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert read_model_config(folder).num_layers == 1
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_model(_TINY, seed=3, root=tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
