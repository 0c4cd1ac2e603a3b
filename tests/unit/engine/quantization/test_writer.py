"""Quantized folders: what is written is what is read; half a folder never stays."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from quickmatch.core.errors import ConfigError
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.loader import Checkpoint
from quickmatch.engine.quantization.folder import read_stored_format
from quickmatch.engine.quantization.formats import (
    FORMATS,
    INT4,
    QuantizedTensor,
    WeightFormat,
    quantize,
)
from quickmatch.engine.quantization.model import quantize_model
from quickmatch.engine.quantization.writer import packed_tensors, write_quantized
from quickmatch.engine.runner import ModelRunner
from tests.parity.models import make_model, save_model
from tests.unit.engine.quantization.layouts import words_of


def rounded(folder: Path, form: WeightFormat) -> list[tuple[str, QuantizedTensor]]:
    return list(quantize_model(folder, form, calibration=None, progress=lambda *_: None))


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_read_as_written(form: WeightFormat, folder: Path, tmp_path: Path) -> None:
    if form.is_float:  # whose groups are of 32 and nothing else
        folder = save_model(make_model("llama", hidden_size=96), tmp_path / "wide")
    layers = rounded(folder, form)
    assert len(layers) == 3 * 7
    made = tmp_path / "made"
    write_quantized(folder, made, form, iter(layers), {"to": form.name})
    stored = read_stored_format(made)
    assert stored is not None
    checkpoint = Checkpoint(made, dtype=torch.float32, device=torch.device("cpu"))
    for name, right in layers:
        found = stored.read_linear(checkpoint, name, *right.shape)
        assert isinstance(found, QuantizedTensor)
        assert torch.equal(found.codes, right.codes)
        assert (found.zeros is None) == (right.zeros is None)
        if right.zeros is not None and found.zeros is not None:
            assert torch.equal(found.zeros, right.zeros)
        torch.testing.assert_close(found.scales, right.scales, rtol=2**-11, atol=0)
    plain, kept = load_file(folder / "model.safetensors"), load_file(made / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(kept[name], plain[name])
    assert "model.layers.0.mlp.up_proj.weight" not in kept


def test_what_a_folder_holds(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()  # an empty folder may be there
    write_quantized(folder, made, INT4, iter(rounded(folder, INT4)), {"rounding": "nearest"})
    names = {path.name for path in made.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert "README.md" not in names
    assert json.loads((made / "quantization.json").read_text()) == {"rounding": "nearest"}
    with safe_open(str(made / "model.safetensors"), framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}  # transformers asks for it
    written = json.loads((made / "config.json").read_text())["quantization_config"]
    assert written["quant_method"] == "compressed-tensors"
    assert written["format"] == "pack-quantized"
    sizes = {g["weights"]["group_size"]: g["targets"] for g in written["config_groups"].values()}
    assert sizes.keys() == {16, 32}  # 48 inputs and 96
    assert sizes[32] == [f"model.layers.{i}.mlp.down_proj" for i in range(3)]
    assert len(sizes[16]) == 3 * 6


def test_the_engine_runs_the_folder(folder: Path, tmp_path: Path) -> None:
    write_quantized(folder, tmp_path / "made", INT4, iter(rounded(folder, INT4)), {})
    runner = ModelRunner(
        EngineConfig(model=str(tmp_path / "made"), num_threads=1, kv_memory_bytes=1 << 22)
    )
    assert runner.model_config.num_layers == 3


def test_one_group_size_is_named_by_class_and_packed_low_bits_first() -> None:
    weight = quantize(torch.randn(8, 64), INT4)
    packed = packed_tensors(weight)
    assert torch.equal(packed["weight_packed"], words_of(weight.codes.tolist(), 4))
    assert packed["weight_scale"].dtype == torch.float16
    assert packed["weight_shape"].tolist() == [8, 64]


def test_scales_too_small_for_float16_keep_float32() -> None:
    weight = quantize(torch.randn(8, 64) * 1e-4, INT4)
    assert packed_tensors(weight)["weight_scale"].dtype == torch.float32


def test_a_broken_run_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, QuantizedTensor]]:
        yield rounded(folder, INT4)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_quantized(folder, tmp_path / "made", INT4, broken(), {})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(ConfigError, match=r"cannot write .*: No space left on device; free space"):
        write_quantized(folder, tmp_path / "made", INT4, iter(rounded(folder, INT4)), {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="exists and is not an empty folder"):
        write_quantized(folder, tmp_path, INT4, iter(()), {})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
