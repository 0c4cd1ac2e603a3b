"""End-of-text ids and advised sampling parameters."""

import json
from pathlib import Path

import pytest

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.generation import eos_token_ids, sampling_defaults


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_union_of_both_files(tmp_path: Path) -> None:
    assert eos_token_ids(tmp_path) == ()
    write(tmp_path, "config.json", {"eos_token_id": 7})
    assert eos_token_ids(tmp_path) == (7,)
    write(tmp_path, "generation_config.json", {"eos_token_id": [9, 8]})
    assert eos_token_ids(tmp_path) == (9, 8, 7)
    write(tmp_path, "generation_config.json", {"eos_token_id": None})
    assert eos_token_ids(tmp_path) == (7,)


def test_sampling_defaults(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == {}
    advised = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": None, "x": 1}
    write(tmp_path, "generation_config.json", advised)
    assert sampling_defaults(tmp_path) == {"temperature": 0.6, "top_k": 20}
    write(tmp_path, "generation_config.json", {"do_sample": False, "temperature": 0.6})
    assert sampling_defaults(tmp_path) == {"temperature": 0.0}


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelLoadError, match="not readable JSON"):
        eos_token_ids(tmp_path)
