"""`quickmatch quantize` on a model of one tiny layer with the shipped tokenizer."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from quickmatch.cli.quantize import Format
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.quantization.formats import FORMATS
from tests.unit.cli.conftest import Run

TEXT = "It is a plain text of a few words, and it goes on for a while. " * 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(model_source(SHIPPED_MODEL)) / name, folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def test_every_format_is_offered() -> None:
    assert {one.value for one in Format} == set(FORMATS)


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_a_folder_is_made_and_measured(
    is_calibrated: bool, run: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    options = ["--to", "int4", "--output", str(made), "--held-out", str(text), "--json"]
    if is_calibrated:
        options += ["--calibrate", str(text)]
    result = run("quantize", str(model), *options)
    assert result.code == 0, result.err
    found = result.json
    assert found["path"] == str(made)
    assert found["size_bytes_after"] < found["size_bytes_before"]
    assert 0.3 < found["top1_agreement"] <= 1.0
    assert found["perplexity_after"] == pytest.approx(found["perplexity_before"], rel=0.05)
    assert 100 < found["num_held_out_tokens"] < 512
    how = json.loads((made / "quantization.json").read_text())
    assert how["rounding"] == ("gptq" if is_calibrated else "nearest")
    assert ("calibration" in how) == is_calibrated


def test_the_table_tells_sizes_and_measures(
    run: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    result = run(
        "quantize", str(model), "--to", "int8", "--out", str(made), "--held-out", str(text)
    )
    assert result.code == 0, result.err
    for part in ("weights", "perplexity", "same likeliest token", "INT8", "held-out tokens"):
        assert part in result.out
    assert f"quickmatch serve {made}" in result.err


def test_wrong_use_is_one_line_before_any_work(run: Run, model: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("")
    made = str(tmp_path / "made")
    for arguments, message in (
        (["nope", "--to", "int4", "--output", made], "no model, folder or hub id 'nope'; models:"),
        ([str(model), "--to", "int4", "--output", str(taken)], "is not an empty folder"),
        (
            [str(model), "--to", "int4", "--output", made, "--calibrate", "none.jsonl"],
            "cannot read dataset file none.jsonl",
        ),
        (
            [str(model), "--to", "int4", "--output", made, "--held-out", "none.txt"],
            "cannot read none.txt",
        ),
        ([str(model), "--to", "int3", "--output", made], "'int3' is not one of"),
    ):
        result = run("quantize", *arguments)
        assert result.code == 2
        assert message in result.err
    assert not Path(made).exists()


def test_errors_are_json_where_json_is_asked_for(run: Run, tmp_path: Path) -> None:
    result = run("quantize", "nope", "--to", "int4", "--output", str(tmp_path / "m"), "--json")
    assert result.code == 2
    assert json.loads(result.err)["error"]["code"] == "model_not_found"
