"""Datasets from files and traces: whole or not at all, deduplicated, split the same each time."""

import json
from pathlib import Path

import pytest

from quickmatch.core.errors import ConfigError, Conflict, DatasetError, NotFound
from quickmatch.store.documents import Dataset, Job, Trace
from quickmatch.tuning import datasets
from tests.unit.tuning.conftest import make_rows, write_rows


def trace(number, question="Why?", answer="Because.", **fields):
    message = {"role": "assistant", "content": answer, "refusal": None}
    defaults = {
        "endpoint": "chat",
        "request": {"model": "m", "messages": [{"role": "user", "content": question}]},
        "response": {"choices": [{"message": message, "finish_reason": "stop"}]},
        "tags": {"app": "credit"},
    }
    return Trace(
        id=f"t{number}", created_at=float(number), trace_id=f"trace-{number}", tenant="d",
        model="m", model_version="m@1", deployment="m", **(defaults | fields),
    )  # fmt: skip


def files(home):
    return sorted(p.name for p in home.datasets.iterdir())


def test_a_file_becomes_a_dataset(store, home, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", make_rows(5))
    made = datasets.create_from_file(store, home, "mine", file, description="five")
    assert (made.num_rows, made.source, made.description) == (5, "file:rows.jsonl", "five")
    file.unlink()  # the dataset has a copy of its own
    assert [r.answer for r in datasets.read_rows(made)] == [
        r["messages"][1]["content"] for r in make_rows(5)
    ]


def test_a_wrong_file_creates_nothing(store, home, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [*make_rows(3), {"messages": []}])
    with pytest.raises(DatasetError, match=r"rows\.jsonl line 4"):
        datasets.create_from_file(store, home, "mine", file)
    assert files(home) == []
    assert store.count(Dataset) == 0


def test_names(store, home, tmp_path, dataset):
    file = write_rows(tmp_path / "more.jsonl", make_rows(1))
    with pytest.raises(Conflict, match="'rows' exists already"):
        datasets.create_from_file(store, home, "rows", file)
    with pytest.raises(ConfigError, match="not allowed"):
        datasets.create_from_file(store, home, "../rows", file)
    assert len(files(home)) == 1
    assert dataset.num_rows == 48


def test_a_full_disk_leaves_nothing(store, home, tmp_path, monkeypatch):
    file = write_rows(tmp_path / "rows.jsonl", make_rows(3))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.os, "fsync", full)
    with pytest.raises(DatasetError, match="No space left on device; free space"):
        datasets.create_from_file(store, home, "mine", file)
    assert files(home) == []


def test_a_changed_file_is_noticed(dataset):
    with Path(dataset.path).open("a") as file:
        file.write("\n")
    with pytest.raises(DatasetError, match="was changed after it was validated"):
        datasets.read_rows(dataset)
    Path(dataset.path).unlink()
    with pytest.raises(DatasetError, match="cannot read"):
        datasets.verify(dataset)


def test_traces_become_rows_once_each(store, home):
    cut = {"choices": [{"message": {"content": "Bec"}, "finish_reason": "length"}]}
    store.insert(
        trace(1),
        trace(2),  # equal to the first
        trace(3, answer="Who knows."),
        trace(4, question="No?", status=500, error="down", response=None),
        trace(5, question="Cut?", response=cut),
        trace(6, question="Empty?", answer=""),
        trace(7, question="Elsewhere?", tags={"app": "other"}),
    )
    made = datasets.create_from_traces(store, home, "mine", {"tags.app": "credit"})
    rows = datasets.read_rows(made)
    assert [(r.prompt[0]["content"], r.answer) for r in rows] == [
        ("Why?", "Because."),
        ("Why?", "Who knows."),
    ]
    assert rows[0].metadata == {
        "trace_id": "trace-1", "model_version": "m@1", "tags": {"app": "credit"},
    }  # fmt: skip
    assert made.source == 'traces:{"tags.app": "credit"}'
    assert made.description == "2 rows from 6 traces (1 duplicates, 3 unfit left out)"
    limited = datasets.create_from_traces(store, home, "one", {}, limit=1)
    assert limited.num_rows == 1


def test_no_fitting_trace_creates_nothing(store, home):
    store.insert(trace(1, status=500))
    with pytest.raises(DatasetError, match="1 traces match the filter, none is a whole"):
        datasets.create_from_traces(store, home, "mine", {})
    assert files(home) == []


def test_split_keeps_proportions_and_repeats(store, home, dataset):
    before = {r.to_json() for r in datasets.read_rows(dataset)}
    train, held = datasets.split(store, home, "rows", holdout=0.25, seed=3, stratify_by="rating")
    assert (train.id, held.id) == ("rows", "rows-holdout")
    kept, out = datasets.read_rows(train), datasets.read_rows(held)
    assert {r.to_json() for r in kept} | {r.to_json() for r in out} == before
    assert len(kept) + len(out) == 48

    def share(rows):
        return sum(r.metadata["tags"]["rating"] == "good" for r in rows) / len(rows)

    assert abs(share(kept) - share(out)) < 0.05
    assert store.get(Dataset, "rows").sha256 == train.sha256
    assert len(files(home)) == 2


def test_the_same_seed_gives_the_same_split(store, home, tmp_path):
    hashes = set()
    for name in ("a", "b"):
        file = write_rows(tmp_path / f"{name}.jsonl", make_rows(40))
        datasets.create_from_file(store, home, name, file)
        hashes.add(datasets.split(store, home, name, holdout=0.1, seed=7)[1].sha256)
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"holdout": 0.0}, "between 0 and 1"),
        ({"holdout": 1.0}, "between 0 and 1"),
        ({"holdout": 0.001}, "leaves one side empty"),
        ({"holdout": 0.5, "stratify_by": "colour"}, "row 1 has no tag or metadata field 'colour'"),
    ],
)
def test_splits_that_cannot_be(store, home, dataset, options, reason):
    with pytest.raises(ConfigError, match=reason):
        datasets.split(store, home, "rows", **options)
    assert store.get(Dataset, "rows") == dataset
    assert store.count(Dataset) == len(files(home)) == 1


@pytest.mark.usefixtures("dataset")
def test_delete_waits_for_jobs(store, home):
    job = Job(id="j", created_at=1.0, base_model="b", dataset="rows", output_model="o")
    store.insert(job)
    with pytest.raises(Conflict, match="used by job j"):
        datasets.delete(store, "rows")
    store.delete(Job, "j")
    datasets.delete(store, "rows")
    assert files(home) == []
    with pytest.raises(NotFound):
        datasets.delete(store, "rows")


def test_metadata_that_utf8_cannot_hold(store, home, tmp_path):
    row = make_rows(1)[0] | {"metadata": {"note": "\ud83d"}}
    file = write_rows(tmp_path / "odd.jsonl", [row])
    made = datasets.create_from_file(store, home, "odd", file)
    assert datasets.read_rows(made)[0].metadata == json.loads('{"note": "\\ud83d"}')
