"""The audit chain: whole as written, and every way to tamper with it shows."""

import threading

import pytest

from quickmatch.core.settings import Home
from quickmatch.observe import audit
from quickmatch.store.documents import AuditRecord
from quickmatch.store.open import open_store


@pytest.fixture
def store(tmp_path):
    store = open_store(Home(tmp_path / "home"))
    yield store
    store.close()


def write(store, num_records):
    for number in range(num_records):
        audit.append(
            store, actor="job draftj-1", action="draft-data-deleted", subject=f"draftj-{number}",
            detail={"files": [{"sha256": "ab", "num_bytes": number}], "share": 0.1},
        )  # fmt: skip


def test_a_chain_as_written_holds(store):
    assert audit.verify(store) == audit.Verified(0, audit.FIRST)
    write(store, 12)  # more than 9: ids sort as numbers do
    found = audit.verify(store)
    assert (found.holds, found.num_records) == (True, 12)
    assert found.head == store.get(AuditRecord, "0000000012").hash
    assert audit.verify(store, head=store.get(AuditRecord, "0000000003").hash).holds


@pytest.mark.parametrize(
    ("field", "value"),
    [("detail", {"files": []}), ("actor", "user eve"), ("created_at", 5.0), ("subject", "x")],
)
def test_a_changed_field_shows(store, field, value):
    write(store, 3)
    store.update(AuditRecord, "0000000002", lambda record: setattr(record, field, value))
    found = audit.verify(store)
    assert "record 2 was changed" in found.error


def test_a_changed_record_with_a_fresh_hash_breaks_the_next(store):
    write(store, 3)

    def forge(record):
        record.subject = "another"
        record.hash = audit.record_hash(record)

    store.update(AuditRecord, "0000000002", forge)
    assert "record 3 does not follow from record 2" in audit.verify(store).error


def test_a_missing_record_shows(store):
    write(store, 3)
    store.delete(AuditRecord, "0000000001")
    assert "record 1 is missing; record 2 stands" in audit.verify(store).error


def test_a_cut_end_shows_against_a_noted_head(store):
    write(store, 3)
    head = audit.verify(store).head
    store.delete(AuditRecord, "0000000003")
    assert audit.verify(store).holds  # by itself a shorter chain is whole
    assert "the end was cut off" in audit.verify(store, head=head).error


def test_writers_at_once_make_one_chain(store):
    threads = [threading.Thread(target=write, args=(store, 8)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = audit.verify(store)
    assert (found.error, found.num_records) == ("", 32)
