"""What a draft job takes of a dataset or of traffic: the newest that fit, and no more is read."""

import shutil

import pytest

from quickmatch.core.errors import DatasetError
from quickmatch.store.documents import Job
from quickmatch.tuning import datasets
from quickmatch.tuning.draft_rows import Asked, RowEncoder
from quickmatch.tuning.draft_source import choose, newest_first
from quickmatch.tuning.draft_traces import asked_of
from tests.unit.tuning.conftest import write_rows
from tests.unit.tuning.test_draft_traces import trace

TURNS = [
    {"role": "user", "content": "explain credit"},
    {"role": "assistant", "content": "because income"},
]


@pytest.fixture
def picky_folder(tmp_path, tiny_folder):
    """A model whose template takes no names."""
    folder = tmp_path / "picky"
    shutil.copytree(tiny_folder, folder)
    refusal = "{% if messages[0].name %}{{ raise_exception('no names here') }}{% endif %}"
    path = folder / "chat_template.jinja"
    path.write_text(refusal + path.read_text())
    return folder


def named(messages):
    return [{**messages[0], "name": "Ann"}, *messages[1:]]


def test_a_row_that_the_template_refuses_is_named(store, home, tmp_path, picky_folder):
    rows = [{"messages": TURNS}, {"messages": named(TURNS)}, {"messages": TURNS}]
    datasets.create_from_file(store, home, "d", write_rows(tmp_path / "rows.jsonl", rows))
    encoder = RowEncoder(picky_folder, version_id="tiny@2", regenerate=None)
    found = newest_first(store, job(dataset="d"), encoder)
    assert next(found) is not None  # the last row
    with pytest.raises(DatasetError, match=r"dataset:d row 2: .*no names here"):
        next(found)


def job(**source):
    return Job(
        id="draftj-1", created_at=1.0, job_type="draft", base_model="tiny", output_model="h",
        **source,
    )  # fmt: skip


def test_traces_are_read_by_their_filter(store, tiny_folder):
    store.insert(trace(1), trace(2, version="old@1"), trace(3, finish="length"))
    store.insert(trace(4).model_copy(update={"tags": {"app": "other"}}))
    encoder = RowEncoder(tiny_folder, version_id="tiny@2", regenerate=None)
    chosen = choose(
        newest_first(store, job(trace_filter={"tags.app": "cards"}), encoder),
        max_length=100, max_sequences=None,
    )  # fmt: skip
    assert [a.output is not None for a in chosen.asked] == [True, False, True]
    assert chosen.num_read == 3


def test_a_call_that_the_template_refuses_is_left_out(store, picky_folder):
    refused = trace(2).model_copy(update={"request": {"messages": named(TURNS[:1])}})
    store.insert(trace(1), refused, trace(3))
    encoder = RowEncoder(picky_folder, version_id="tiny@2", regenerate=None)
    found = list(newest_first(store, job(trace_filter={}), encoder))
    assert [asked is None for asked in found] == [False, True, False]


def test_no_more_is_read_and_encoded_than_is_learnt_from(store, tiny_folder, monkeypatch):
    store.insert(*(trace(n) for n in range(1, 401)))
    encoder, num_encoded = RowEncoder(tiny_folder, version_id="tiny@2", regenerate=None), []
    chat = encoder.chat
    monkeypatch.setattr(
        encoder, "chat", lambda *given, **more: num_encoded.append(1) or chat(*given, **more)
    )
    chosen = choose(
        newest_first(store, job(trace_filter={}), encoder), max_length=100, max_sequences=5
    )
    assert (len(num_encoded), chosen.num_read) == (5, 5)
    newest = [asked_of(trace(n), encoder) for n in range(396, 401)]
    assert chosen.asked == newest  # oldest first


def test_what_does_not_fit_is_left_out_and_counted():
    long, short = Asked([1] * 9, [2, 3]), Asked([1], [2])
    first, second, third = Asked([1], [2, 3]), Asked([1, 2], [3, 4]), Asked([1, 2, 3], None)
    found = [third, None, long, first, short, second, first]
    chosen = choose(found, max_length=10, max_sequences=None)
    assert chosen.asked == [second, first, third]
    assert chosen.summary() == (
        "3 taken of the newest 7 rows, left out 2 without an answer to learn from, "
        "1 longer than the context, 1 equal to newer ones"
    )
