"""Paths and hub ids to folders: what is missing is named, with the remedy, in one line."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.folder import resolve_model, weight_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all the parts (it is not a runnable model)."""
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    save_file({"x": torch.zeros(1000)}, tmp_path / "model.safetensors")
    return tmp_path


def message_of(path: Path | str) -> str:
    with pytest.raises(ModelLoadError) as caught:
        resolve_model(str(path))
    assert "\n" not in caught.value.message
    return caught.value.message


def test_whole_folder(folder: Path) -> None:
    assert resolve_model(str(folder)) == folder


@pytest.mark.parametrize(
    ("missing", "part"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer (tokenizer.json or tokenizer.model)"),
        ("model.safetensors", "has no weights (model.safetensors or"),
    ],
)
def test_missing_part(folder: Path, missing: str, part: str) -> None:
    (folder / missing).unlink()
    assert part in message_of(folder)


def test_pickled_weights_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "convert them to safetensors" in message_of(folder)


def test_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "shards but no model.safetensors.index.json" in message_of(folder)
    index = folder / "model.safetensors.index.json"
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index.write_text(json.dumps({"weight_map": {"x": shards[0], "y": shards[1]}}))
    assert f"lacks the shard {shards[1]}" in message_of(folder)
    save_file({"y": torch.zeros(3)}, folder / shards[1])
    assert [path.name for path in weight_files(resolve_model(str(folder)))] == shards
    index.write_text("{}")
    assert "has no weight_map" in message_of(folder)


@pytest.mark.parametrize("kept", [0, 5, 30, -1])
def test_truncated_safetensors(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    message = message_of(folder)
    assert str(path) in message
    assert "download it again" in message


def test_damaged_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:12] = b"####"
    path.write_bytes(bytes(content))
    assert "damaged header" in message_of(folder)


def test_no_such_path(folder: Path) -> None:
    assert "there is no model folder at /no/such/place" in message_of("/no/such/place")
    assert "is a file; give the model's folder" in message_of(folder / "config.json")


def test_hub_id_without_network(tmp_path: Path) -> None:
    """In a fresh process with an empty cache: one line, soon, that names the remedy."""
    code = (
        "from quickmatch.engine.folder import resolve_model\n"
        "from quickmatch.core.errors import ModelLoadError\n"
        "try:\n    resolve_model('nobody-here/no-such-model-xyz')\n"
        "except ModelLoadError as error:\n    print(error.message)\n"
    )
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert time.monotonic() - started < 60
    assert done.stdout.count("\n") == 1
    assert "nobody-here/no-such-model-xyz is no local folder" in done.stdout
    assert "give the path of a model folder" in done.stdout


def test_resolving_needs_no_torch() -> None:
    code = "import sys, quickmatch.engine.folder, quickmatch.engine.generation as g\n"
    code += "assert g and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
