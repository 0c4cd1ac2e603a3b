"""The audit log: what was done and has to be answered for, in a chain that shows tampering.

Owns the chain: records are numbered without gaps, and each holds the hash of the one before, so
that whoever changes, puts in or takes out a record has to make every later one anew. Cutting off
the end leaves a shorter whole chain: who wants to notice that keeps the last hash elsewhere and
compares (`quickmatch verify audit --head HASH`). Knows no reasons: callers say what they did.

Invariant: a record is appended after what it tells of has happened, never before.
"""

import hashlib
import json
from dataclasses import dataclass

from quickmatch.core.clock import wall
from quickmatch.core.errors import Conflict
from quickmatch.store.documents import AuditRecord, Json
from quickmatch.store.protocol import Store

FIRST = "0" * 64  # what the first record has for the hash of the one before


@dataclass(frozen=True, slots=True)
class Verified:
    """What a check of the chain found."""

    num_records: int
    head: str  # hash of the last record
    error: str = ""  # the first thing that does not fit; "": the chain is whole

    @property
    def holds(self) -> bool:
        """Whether the chain is whole."""
        return not self.error


def append(store: Store, *, actor: str, action: str, subject: str, detail: Json) -> AuditRecord:
    """Add a record at the end of the chain and return it."""
    while True:
        last = next(store.find(AuditRecord, order_by="id", descending=True, limit=1), None)
        number = last.number + 1 if last else 1
        record = AuditRecord(
            id=f"{number:010d}",
            created_at=wall(),
            number=number,
            actor=actor,
            action=action,
            subject=subject,
            detail=detail,
            previous=last.hash if last else FIRST,
            hash="",
        )
        record.hash = record_hash(record)
        try:
            store.insert(record)
        except Conflict:
            continue  # another process appended just now; take the next number
        return record


def record_hash(record: AuditRecord) -> str:
    """Return the SHA-256 of a record's fields, its own hash and the store's revision aside."""
    fields = record.model_dump(mode="json", exclude={"hash", "revision"})
    text = json.dumps(fields, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def verify(store: Store, head: str = "") -> Verified:
    """Derive every hash anew, first record to last.

    head: a hash that was noted earlier; it must be that of a record that is still there.
    """
    previous, number, seen = FIRST, 0, not head
    for record in store.find(AuditRecord, order_by="id"):
        number += 1
        fault = _fault(record, number, previous)
        if fault:
            return Verified(number, previous, fault)
        previous = record.hash
        seen = seen or previous == head
    if not seen:
        return Verified(number, previous, f"no record has the hash {head}: the end was cut off")
    return Verified(number, previous)


def _fault(record: AuditRecord, number: int, previous: str) -> str:
    if (record.number, record.id) != (number, f"{number:010d}"):
        return f"record {number} is missing; record {record.number} stands in its place"
    if record.previous != previous:
        return f"record {number} does not follow from record {number - 1}, which was changed"
    if record.hash != record_hash(record):
        return f"record {number} was changed: its fields do not give its hash"
    return ""
