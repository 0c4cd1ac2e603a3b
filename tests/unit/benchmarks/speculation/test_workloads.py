"""Workloads: disjoint parts, right answers, the same for the same seed."""

import json
from pathlib import Path

import pytest

from benchmarks.speculation import workloads
from benchmarks.speculation.code_edits import code_edits


def test_code_edits_are_valid_python_before_and_after() -> None:
    for edit in code_edits(60, seed=3):
        compile(edit.prediction, "before", "exec")
        compile(edit.answer, "after", "exec")
        assert edit.answer != edit.prediction
        assert edit.prediction in edit.question


def test_code_edits_repeat_for_a_seed_and_differ_between_seeds() -> None:
    assert code_edits(20, seed=1) == code_edits(20, seed=1)
    assert code_edits(20, seed=1) != code_edits(20, seed=2)


def test_more_code_edits_begin_with_the_same_ones() -> None:
    assert code_edits(30, seed=1)[:10] == code_edits(10, seed=1)


@pytest.mark.parametrize(
    "made", [workloads.credit(30, 12, seed=5), workloads.edits(30, 12, seed=5)]
)
def test_no_test_question_is_among_the_train_ones(made: workloads.Workload) -> None:
    train = {json.dumps(item.messages) for item in made.train}
    test = {json.dumps(item.messages) for item in made.test}
    assert (len(train), len(test)) == (30, 12)
    assert not train & test


def test_edits_carry_the_code_as_prediction() -> None:
    for item in workloads.edits(0, 5, seed=5).test:
        assert item.prediction in item.messages[0]["content"]


def test_files_give_up_test_questions_that_stand_in_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, "train", ["a", "b"])
    _write(tmp_path, "test", ["b", "c"])
    monkeypatch.setenv(workloads.DATA_VARIABLE, str(tmp_path))
    made = workloads.from_files("gsm8k", 10, 10, seed=1)
    assert [item.messages[0]["content"] for item in made.test] == ["c"]
    assert made.test[0].answer == "answer to c"


def test_long_table_lists_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "train", [f"Do it.\n\nTables:\n{'T(A)' * 400}\n\nQuestion: how?"])
    _write(tmp_path, "test", [f"Do it.\n\nTables:\n{'T(A)' * 3}\n\nQuestion: why?"])
    monkeypatch.setenv(workloads.DATA_VARIABLE, str(tmp_path))
    made = workloads.from_files("gsm8k", 10, 10, seed=1)
    assert made.train[0].messages[0]["content"] == "Do it.\n\nQuestion: how?"
    assert "Tables:" in made.test[0].messages[0]["content"]


@pytest.mark.parametrize("folder", ["", "/nowhere"])
def test_missing_data_names_the_variable(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(workloads.DATA_VARIABLE, folder)
    with pytest.raises(workloads.NoData, match=workloads.DATA_VARIABLE):
        workloads.from_files("gsm8k", 1, 1, seed=1)


def test_prose_openings_are_all_different() -> None:
    openings = workloads.prose(200, seed=1)
    assert len(set(openings)) == 200
    assert openings == workloads.prose(200, seed=1)


def _write(folder: Path, part: str, questions: list[str]) -> None:
    path = folder / "workloads" / "gsm8k" / f"{part}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": f"answer to {question}"},
            ]
        }
        for question in questions
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
