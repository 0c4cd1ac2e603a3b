"""A model that does not fit is refused before it is read, with what it takes and a remedy."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quickmatch.core.errors import ConfigError, ModelLoadError
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine import runner
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.fit import weight_bytes
from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.quantization.formats import INT4, find_format
from quickmatch.engine.runner import ModelRunner
from tests.unit.engine.test_attention import config_of

FOLDER = Path(model_source(SHIPPED_MODEL))
KV_BYTES = 4 << 20


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_the_estimate_is_no_more_than_what_is_loaded(quantization: str) -> None:
    form = None if quantization == "none" else find_format(quantization)
    told = weight_bytes(FOLDER, read_model_config(FOLDER), dtype=torch.bfloat16, form=form)
    config = EngineConfig(
        model=str(FOLDER),
        dtype="bfloat16",
        quantization=quantization,  # type: ignore[arg-type]
        kv_memory_bytes=KV_BYTES,
    )
    loaded = ModelRunner(config).model_bytes
    assert 0.5 * loaded < told <= loaded


def test_what_is_counted_and_as_what(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": torch.zeros(10, 4),
        "lm_head.weight": torch.zeros(10, 4),
        "model.layers.0.mlp.up_proj.weight": torch.zeros(8, 4),
        "model.norm.weight": torch.zeros(4),
        "codes": torch.zeros(3, dtype=torch.int32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    untied = config_of(2, 1, 16)
    tied = replace(untied, tie_word_embeddings=True)
    dense = weight_bytes(tmp_path, untied, dtype=torch.bfloat16, form=None)
    assert dense == 2 * (40 + 40 + 32 + 4) + 12
    assert weight_bytes(tmp_path, tied, dtype=torch.bfloat16, form=None) == dense - 2 * 40
    rounded = weight_bytes(tmp_path, untied, dtype=torch.bfloat16, form=INT4)
    assert rounded == 40 + 40 + 16 + 2 * 4 + 12


def test_a_model_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "free_memory_bytes", lambda _: 1 << 20)
    monkeypatch.setattr(runner, "make_pass", lambda *_args, **_options: pytest.fail("it is read"))
    with pytest.raises(ConfigError, match=r"this machine has 0.00 GB free; take --quantization"):
        ModelRunner(EngineConfig(model=str(FOLDER)))


def test_keys_and_values_get_a_share_of_what_weights_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = read_model_config(FOLDER)
    taken = weight_bytes(FOLDER, model, dtype=torch.bfloat16, form=None)
    monkeypatch.setattr(runner, "free_memory_bytes", lambda _: taken + KV_BYTES)
    config = EngineConfig(model=str(FOLDER), dtype="bfloat16", kv_memory_fraction=0.5)
    assert 0.4 * KV_BYTES < ModelRunner(config).kv_bytes <= 0.5 * KV_BYTES


def test_a_card_that_runs_out_is_told_with_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(runner, "make_pass", runs_out)
    with pytest.raises(ModelLoadError, match=r"lower kv_memory_fraction .* Tried to allocate 2 Gi"):
        ModelRunner(EngineConfig(model=str(FOLDER)))


def test_an_adapter_or_a_head_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before it is read, and so that as much stays free as shall; one that fits is read."""
    config = EngineConfig(
        model=str(FOLDER), kv_memory_bytes=KV_BYTES, min_free_memory_bytes=100_000_000
    )
    loaded = ModelRunner(config)
    save_file({"weight": torch.zeros(1_000_000)}, tmp_path / "adapter_model.safetensors")
    monkeypatch.setattr(runner, "free_memory_bytes", lambda _: 103_900_000)
    words = r"takes 4 MB, and 4 MB are free beyond engine.min_free_memory_bytes; unload adapters"
    for read in (loaded.read_adapter, loaded.read_draft):
        with pytest.raises(ConfigError, match=words):
            read(str(tmp_path))
    monkeypatch.setattr(runner, "free_memory_bytes", lambda _: 104_100_000)
    for read in (loaded.read_adapter, loaded.read_draft):
        with pytest.raises(ModelLoadError, match=r"config\.json"):
            read(str(tmp_path))
