"""Heads on disk: both formats give back what was written, and what does not fit is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quickmatch.core.errors import ConfigError, ModelLoadError
from quickmatch.engine.model_config import ModelConfig, RopeConfig
from quickmatch.engine.speculation.head_config import (
    HeadConfig,
    check_fits,
    default_aux_layers,
    new_head_config,
)
from quickmatch.engine.speculation.head_folder import HeadFormat, read_head, write_head
from tests.unit.engine.speculation.random_head import random_head

TARGET = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_model_len=64,
    rms_norm_eps=1e-5,
    rope=RopeConfig(original_max_len=64),
    windows=(None,) * 6,
)
CONFIG = new_head_config(TARGET, draft_vocab_size=20)
FORMATS: tuple[HeadFormat, ...] = ("eagle3", "speculators")


def _write(folder: Path, config: HeadConfig = CONFIG, **changes: Any) -> Path:
    options: dict[str, Any] = {
        "tensors": random_head(config),
        "format": "eagle3",
        "target_name": "base",
        "target_architecture": "LlamaForCausalLM",
        **changes,
    }
    write_head(folder, config, **options)
    return folder


def _edit_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def _edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(str(path))
    change(tensors)
    save_file(tensors, str(path))


ROPES = {
    "default": RopeConfig(theta=5e5, original_max_len=64),
    "linear": RopeConfig(kind="linear", factor=4.0, original_max_len=64),
    "llama3": RopeConfig(kind="llama3", factor=8.0, original_max_len=32, high_freq_factor=3.0),
    "yarn": RopeConfig(kind="yarn", factor=2.0, original_max_len=32, mscale=0.7, truncate=False),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "config",
    [
        *(replace(CONFIG, rope=rope) for rope in ROPES.values()),
        replace(CONFIG, norm_before_residual=True, num_kv_heads=1, head_dim=4),
        replace(CONFIG, hidden_size=12, target_hidden_size=16),
        replace(CONFIG, aux_layers=(0, 5)),
        replace(CONFIG, draft_vocab_size=50),
    ],
    ids=[*ROPES, "other-shape", "narrow", "two-layers", "whole-vocabulary"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_round_trip_is_exact(
    tmp_path: Path, format: HeadFormat, config: HeadConfig, dtype: torch.dtype
) -> None:
    tensors = random_head(config)
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    _write(tmp_path / "head", config, tensors=tensors, format=format)
    read_config, read = read_head(tmp_path / "head")
    assert read_config == config
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


@pytest.mark.parametrize("format", FORMATS)
def test_embeddings_travel_with_a_head_that_has_its_own(tmp_path: Path, format: HeadFormat) -> None:
    tensors = {**random_head(CONFIG), "embed_tokens.weight": torch.randn(50, 16)}
    _write(tmp_path / "head", tensors=tensors, format=format)
    read = read_head(tmp_path / "head")[1]
    assert torch.equal(read["embed_tokens.weight"], tensors["embed_tokens.weight"])


def test_each_format_numbers_the_layers_in_its_own_way(tmp_path: Path) -> None:
    """Ours and vLLM's number is the layer entered; SGLang's, inside eagle_config, the one left."""
    assert CONFIG.aux_layers == (1, 3, 5)
    key = "eagle_aux_hidden_state_layer_ids"
    eagle = json.loads((_write(tmp_path / "a") / "config.json").read_text())
    assert eagle[key] == [1, 3, 5]
    assert eagle["eagle_config"][key] == [0, 2, 4]
    written = _write(tmp_path / "b", format="speculators") / "config.json"
    assert json.loads(written.read_text())[key] == [1, 3, 5]
    _edit_json(tmp_path / "a", lambda raw: raw.pop(key))
    assert read_head(tmp_path / "a")[0].aux_layers == (1, 3, 5)
    _edit_json(tmp_path / "a", lambda raw: raw.pop("eagle_config"))
    assert read_head(tmp_path / "a")[0].aux_layers == ()


def test_names_follow_the_format(tmp_path: Path) -> None:
    eagle = load_file(str(_write(tmp_path / "a") / "model.safetensors"))
    other = load_file(str(_write(tmp_path / "b", format="speculators") / "model.safetensors"))
    assert "midlayer.self_attn.q_proj.weight" in eagle
    assert "layers.0.self_attn.q_proj.weight" in other
    assert len(eagle) == len(other)


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [(1, (0,)), (2, (1,)), (4, (1, 2, 3)), (6, (1, 3, 5)), (8, (2, 4, 5)), (32, (2, 16, 29))],
)
def test_default_layers_are_early_middle_and_late(num_layers: int, expected: object) -> None:
    assert default_aux_layers(num_layers) == expected


JSON_MISFITS: dict[str, tuple[HeadFormat, Callable[[dict[str, Any]], object], str]] = {
    "architecture": (
        "eagle3",
        lambda raw: raw.update(architectures=["MedusaModel"]),
        "names the architecture MedusaModel; a head is LlamaForCausalLMEagle3",
    ),
    "eagle-1": (
        "eagle3",
        lambda raw: raw["eagle_config"].update(use_aux_hidden_state=False),
        "use_aux_hidden_state is false",
    ),
    "two layers": (
        "eagle3",
        lambda raw: raw.update(num_hidden_layers=2),
        "num_hidden_layers is 2; heads of one layer",
    ),
    "biases": ("eagle3", lambda raw: raw.update(attention_bias=True), "attention_bias is set"),
    "layer order": (
        "eagle3",
        lambda raw: raw.update(eagle_aux_hidden_state_layer_ids=[3, 1, 5]),
        r"is \[3, 1, 5\]; a list of ascending layers",
    ),
    "vocabulary": (
        "eagle3",
        lambda raw: raw.update(vocab_size=51),
        r"t2d in .* has the shape \[50\], config.json says \[51\]",
    ),
    "another speculator": (
        "speculators",
        lambda raw: raw.update(speculators_model_type="dflash"),
        "speculators_model_type is 'dflash'; supported: 'eagle3'",
    ),
    "no layer": (
        "speculators",
        lambda raw: raw.pop("transformer_layer_config"),
        "has no transformer_layer_config",
    ),
    "another layer": (
        "speculators",
        lambda raw: raw["transformer_layer_config"].update(model_type="qwen3"),
        "is a qwen3 layer; supported: llama",
    ),
    "unknown residual": (
        "speculators",
        lambda raw: raw.pop("norm_before_residual"),
        "does not say norm_before_residual",
    ),
    "post-norm feedback": (
        "speculators",
        lambda raw: raw.update(norm_output=True),
        "norm_output is set",
    ),
}


@pytest.mark.parametrize("case", JSON_MISFITS)
def test_a_config_that_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    format, change, message = JSON_MISFITS[case]
    _write(tmp_path / "head", format=format)
    _edit_json(tmp_path / "head", change)
    with pytest.raises(ModelLoadError, match=message):
        read_head(tmp_path / "head")


TENSOR_MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("fc.weight"), "has no tensor fc.weight"),
    "no map": (lambda t: t.pop("d2t"), "has no tensor d2t"),
    "unknown": (lambda t: t.update(extra=torch.ones(1)), "holds the tensor extra"),
    "shape": (
        lambda t: t.update({"fc.weight": torch.ones(16, 32)}),
        r"fc.weight in .* has the shape \[16, 32\], config.json says \[16, 48\]",
    ),
    "out of range": (
        lambda t: t.update(d2t=torch.full((20,), 40)),
        "leads to token 59, the vocabulary has 50; d2t must hold offsets",
    ),
    "below zero": (lambda t: t.update(d2t=torch.full((20,), -1)), "leads to token -1"),
    "twice": (
        lambda t: t.update(d2t=-torch.arange(20)),
        "maps two draft tokens to one",
    ),
    "disagreeing": (
        lambda t: t.update(t2d=torch.ones(50, dtype=torch.bool)),
        r"name different tokens \(50 in t2d, 20 in d2t\)",
    ),
    "kind": (lambda t: t.update(d2t=t["d2t"].float()), "they must be int64 and bool"),
    "not a number": (
        lambda t: t["norm.weight"].fill_(float("nan")),
        "norm.weight in .* holds values that are not finite",
    ),
}


@pytest.mark.parametrize("case", TENSOR_MISFITS)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, case: str) -> None:
    change, message = TENSOR_MISFITS[case]
    _write(tmp_path / "head")
    _edit_tensors(tmp_path / "head", change)
    with pytest.raises(ModelLoadError, match=message):
        read_head(tmp_path / "head")


def _pickle(folder: Path, content: object = None) -> Path:
    """Put the weights into a pytorch_model.bin, or something else."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights) if content is None else content, folder / "pytorch_model.bin")
    weights.unlink()
    return folder / "pytorch_model.bin"


def test_weights_may_be_in_a_pickle(tmp_path: Path) -> None:
    config, tensors = read_head(_write(tmp_path / "head"))
    _pickle(tmp_path / "head")
    again, found = read_head(tmp_path / "head")
    assert (again, found.keys()) == (config, tensors.keys())
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_pickle_of_anything_but_tensors_is_refused(tmp_path: Path) -> None:
    cut = _pickle(_write(tmp_path / "cut"))
    cut.write_bytes(cut.read_bytes()[:-100])
    _pickle(_write(tmp_path / "code"), {"fc.weight": Path("run me")})
    for name in ("cut", "code"):
        with pytest.raises(ModelLoadError, match="is damaged or holds more than tensors") as caught:
            read_head(tmp_path / name)
        assert "\n" not in caught.value.message
    _pickle(_write(tmp_path / "list"), [torch.zeros(2)])
    with pytest.raises(ModelLoadError, match="is no table of tensors"):
        read_head(tmp_path / "list")


def test_a_cut_off_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    folder = _write(tmp_path / "head")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="is truncated"):
        read_head(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        read_head(folder)


def test_nothing_is_overwritten_and_nothing_half_is_left(tmp_path: Path) -> None:
    folder = _write(tmp_path / "head")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        _write(folder)
    with pytest.raises(ModelLoadError, match="has no tensor"):
        _write(tmp_path / "other", tensors={})
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 60}, "a target with the vocabulary 60, this model's is 50"),
        ({"target_hidden_size": 32}, "the hidden size 32, this model's is 16"),
        ({"hidden_size": 12}, "the head is 12 wide and has no embed_tokens.weight"),
        ({"aux_layers": (2, 3, 7)}, "enters layer 7, the target has 6 layers"),
    ],
)
def test_a_head_of_another_target_is_refused(changes: dict[str, Any], message: str) -> None:
    check_fits(CONFIG, TARGET, has_embedding=False)
    with pytest.raises(ModelLoadError, match=message):
        check_fits(replace(CONFIG, **changes), TARGET, has_embedding=False)
