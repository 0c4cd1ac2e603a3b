"""`quickmatch quantize` on a model of one tiny layer with the shipped tokenizer."""

import json
from pathlib import Path

import pytest

from quickmatch.cli.quantize import Format
from quickmatch.core.settings import Home
from quickmatch.engine.quantization.formats import FORMATS
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.store.documents import Trace
from quickmatch.store.open import open_store
from tests.unit.cli.conftest import Run
from tests.unit.cli.tiny_model import make_tiny_model

TEXT = "It is a plain text of a few words, and it goes on for a while. " * 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def len_of(text: Path, model: Path) -> int:
    return len(Tokenizer.from_folder(model).encode(text.read_text(encoding="utf-8")))


def recorded(number: int) -> Trace:
    return Trace(
        id=f"trace-{number}",
        trace_id=f"{number:032x}",
        created_at=float(number),
        tenant="default",
        deployment="tiny",
        endpoint="chat",
        status=200,
        model="tiny",
        model_version="tiny@1",
        tags={"app": "bank"},
        request={"messages": [{"role": "user", "content": f"What is card {number}? " * 9}]},
        response={
            "choices": [
                {
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "It is a card. " * 9},
                }
            ]
        },
    )


def test_every_format_is_offered() -> None:
    assert {one.value for one in Format} == set(FORMATS)


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_a_folder_is_made_and_measured(
    is_calibrated: bool, run: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    options = ["--to", "int4", "--out", str(made), "--held-out", str(text), "-o", "json"]
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
    assert ("calibration" in how) == ("uncalibrated" in found) == is_calibrated
    if is_calibrated:
        assert how["calibration"] == {"text": "text.txt", "num_tokens": len_of(text, model)}
        assert 0.3 < found["uncalibrated"]["top1_agreement"] <= 1.0


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


def test_calibrated_on_a_dataset_and_on_recorded_calls(
    run: Run, home: Home, model: Path, tmp_path: Path
) -> None:
    """By their names; the table tells what rounding without them would have cost."""
    store = open_store(home)
    store.insert(*map(recorded, range(6)))
    store.close()
    assert run("create", "dataset", "calls", "--from-traces").code == 0
    made = [tmp_path / "by-dataset", tmp_path / "by-traces"]
    options = ["quantize", str(model), "--to", "int4", "--held-out", "calls", "--out"]
    result = run(*options, str(made[0]), "--calibrate", "calls")
    assert result.code == 0, result.err
    assert "INT4, CALIBRATED" in result.out
    assert "UNCALIBRATED" in result.out
    assert "(dataset calls)" in result.out
    result = run(*options, str(made[1]), "--from-traces", "--filter", "tags.app=bank")
    assert result.code == 0, result.err
    hows = [json.loads((f / "quantization.json").read_text())["calibration"] for f in made]
    assert [how["text"] for how in hows] == ["dataset calls", "traces tags.app=bank"]
    assert hows[0]["num_tokens"] == hows[1]["num_tokens"] > 100


def test_wrong_use_is_one_line_before_any_work(run: Run, model: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("")
    made = str(tmp_path / "made")
    for arguments, message in (
        (["nope", "--to", "int4", "--out", made], "no model, folder or hub id 'nope'; models:"),
        ([str(model), "--to", "int4", "--out", str(taken)], "is not an empty folder"),
        (
            [str(model), "--to", "int4", "--out", made, "--calibrate", "none.jsonl"],
            "no file and no dataset 'none.jsonl'; datasets: none",
        ),
        (
            [str(model), "--to", "int4", "--out", made, "--held-out", "none.txt"],
            "no file and no dataset 'none.txt'",
        ),
        (
            [str(model), "--to", "int4", "--out", made, "--from-traces", "--filter", "tags.a=b"],
            "no recorded call that matches is a whole chat answer",
        ),
        ([str(model), "--to", "int4", "--out", made, "--filter", "a=b"], "give --from-traces"),
        (
            [str(model), "--to", "int4", "--out", made, "--from-traces", "--calibrate", "x"],
            "not on both",
        ),
        ([str(model), "--to", "int3", "--out", made], "'int3' is not one of"),
    ):
        result = run("quantize", *arguments)
        assert result.code == 2
        assert message in result.err
    assert not Path(made).exists()


def test_errors_are_json_where_json_is_asked_for(run: Run, tmp_path: Path) -> None:
    result = run("quantize", "nope", "--to", "int4", "--out", str(tmp_path / "m"), "-o", "json")
    assert result.code == 2
    assert json.loads(result.err)["error"]["code"] == "model_not_found"
