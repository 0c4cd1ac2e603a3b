"""What was collected is deleted, and the audit log says so, whatever goes wrong in between."""

import hashlib
from pathlib import Path

import pytest

from quickmatch.core.errors import Conflict
from quickmatch.observe import audit
from quickmatch.store.documents import AuditRecord, Job, JobState
from quickmatch.store.protocol import require
from quickmatch.tuning import draft_data
from quickmatch.tuning.draft_data import Collected, TokenSequence


@pytest.fixture
def job(store, home):
    job = Job(
        id="draftj-1", created_at=1.0, job_type="draft", base_model="tiny", output_model="head",
        dataset="chats", state=JobState.COMPLETED,
    )  # fmt: skip
    store.insert(job)
    folder = draft_data.open_folder(store, home, job)
    draft_data.write_sequences(folder, Collected([TokenSequence([1, 2], [3])], []))
    return require(store, Job, job.id)


def records(store):
    return [(r.subject, [f["sha256"] for f in r.detail["files"]]) for r in store.find(AuditRecord)]


def test_a_deletion_is_recorded_though_the_store_took_no_record_at_first(store, job, monkeypatch):
    file = Path(job.data_path) / draft_data.SEQUENCES
    digest = hashlib.sha256(file.read_bytes()).hexdigest()

    def refuse(*_, **__):
        raise Conflict("the store is locked")

    with monkeypatch.context() as patch:
        patch.setattr(audit, "append", refuse)
        with pytest.raises(Conflict):
            draft_data.forget(store, job, actor="job draftj-1")
    assert not file.exists()
    assert require(store, Job, job.id).data_path
    draft_data.sweep(store)
    assert records(store) == [("draftj-1", [digest])]
    assert not file.parent.exists()
    assert require(store, Job, job.id).data_path == ""


def test_what_was_collected_anew_in_between_is_recorded_beside_it(store, job, monkeypatch):
    folder = Path(job.data_path)

    def refuse(*_, **__):
        raise Conflict("the store is locked")

    with monkeypatch.context() as patch:
        patch.setattr(audit, "append", refuse)
        with pytest.raises(Conflict):
            draft_data.forget(store, job, actor="job draftj-1")
    draft_data.write_sequences(folder, Collected([TokenSequence([4], [5, 6])], []))
    draft_data.forget(store, job, actor="job draftj-1")
    ((_, digests),) = records(store)
    assert len(set(digests)) == 2


def test_a_full_disk_keeps_no_data(store, job, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    folder = Path(job.data_path)
    monkeypatch.setattr(draft_data, "replacing", full)
    draft_data.forget(store, job, actor="job draftj-1")
    assert len(records(store)) == 1
    assert not folder.exists()
