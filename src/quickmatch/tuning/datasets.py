"""Datasets: made from files and traces, split, deleted.

Owns the dataset files in the home and their documents. Knows no tokens and no jobs.

Invariant: a document exists only for a whole, valid file. Files are written under a name of
their own beside the others, moved into place when complete, and never changed afterwards, so
that a job may rely on the document's SHA-256.
"""

import hashlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quickmatch.core.clock import wall
from quickmatch.core.errors import ConfigError, Conflict, DatasetError
from quickmatch.core.ids import check_name, new_id
from quickmatch.core.settings import Home
from quickmatch.store.documents import Dataset, Job, JobState
from quickmatch.store.protocol import Filter, Store, require
from quickmatch.tuning.chat_rows import ChatRow, read_chat_rows
from quickmatch.tuning.trace_rows import TraceRows

HOLDOUT_SUFFIX = "-holdout"


def create_from_file(
    store: Store, home: Home, name: str, file: Path, *, description: str = ""
) -> Dataset:
    """Validate a chat JSONL file and keep a copy of it as dataset `name`.

    Raises DatasetError "FILE line N: reason" at the first wrong line; nothing is created then.
    """
    _check_new(store, name)
    dataset = _write(home, name, read_chat_rows(file), f"file:{file.name}", description)
    return _insert(store, dataset)


def create_from_traces(
    store: Store,
    home: Home,
    name: str,
    where: Filter,
    *,
    limit: int | None = None,
    description: str = "",
) -> Dataset:
    """Make dataset `name` from successful chat traces that match the filter, oldest first.

    A row is the request's messages and the answer; equal rows are kept once. The trace id, the
    model version and the tags go into the row's metadata. `limit` bounds the rows.
    Raises DatasetError if no trace gives a row; nothing is created then.
    """
    _check_new(store, name)
    rows = TraceRows(store, where, limit)
    source = f"traces:{json.dumps(where, sort_keys=True, default=str)}"
    dataset = _write(home, name, rows, source, "")
    dataset.description = description or rows.summary()
    return _insert(store, dataset)


def split(
    store: Store,
    home: Home,
    name: str,
    *,
    holdout: float,
    seed: int = 0,
    stratify_by: str | None = None,
) -> tuple[Dataset, Dataset]:
    """Move a share of the rows into dataset `name-holdout`; return what stays, and that.

    holdout: share in (0, 1). stratify_by: a tag (or other metadata field) whose values keep
    their proportions. The same rows, share and seed give the same split.
    """
    if not 0.0 < holdout < 1.0:
        raise ConfigError(f"holdout is {holdout}; it must be between 0 and 1, say 0.1")
    whole = require(store, Dataset, name)
    held_name = check_name(name + HOLDOUT_SUFFIX, "dataset")
    _check_new(store, held_name)
    _refuse_in_use(store, name)
    rows = read_rows(whole)
    held_out = _choose(rows, holdout, seed, stratify_by, name)
    note = f"split holdout={holdout} seed={seed} stratify_by={stratify_by}"
    kept = [r for i, r in enumerate(rows) if i not in held_out]
    held = [r for i, r in enumerate(rows) if i in held_out]
    train = _write(home, name, kept, whole.source, f"{whole.description} ({note})".strip())
    rest = _write(home, held_name, held, whole.source, f"held out of {name} ({note})")
    try:
        if store.get(Dataset, held_name) is not None:
            raise Conflict(f"dataset {held_name!r} was made meanwhile; delete it first")
        store.put(train, rest)
    except BaseException:
        Path(train.path).unlink(missing_ok=True)
        Path(rest.path).unlink(missing_ok=True)
        raise
    Path(whole.path).unlink(missing_ok=True)
    return train, rest


def delete(store: Store, name: str) -> None:
    """Delete a dataset and its file. Raises NotFound, or Conflict while a job needs it."""
    dataset = require(store, Dataset, name)
    _refuse_in_use(store, name)
    store.delete(Dataset, name)
    Path(dataset.path).unlink(missing_ok=True)


def read_rows(dataset: Dataset) -> list[ChatRow]:
    """Return all rows. Raises DatasetError if the file is gone or not the one that was checked."""
    verify(dataset)
    return list(read_chat_rows(Path(dataset.path), shown_as=f"dataset {dataset.id}"))


def verify(dataset: Dataset) -> None:
    """Raise DatasetError unless the file is, byte for byte, the one that was validated."""
    try:
        with Path(dataset.path).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(
            f"dataset {dataset.id!r}: cannot read {dataset.path}: {error.strerror}; "
            "delete the dataset and create it again"
        ) from error
    if found != dataset.sha256:
        raise DatasetError(
            f"dataset {dataset.id!r}: {dataset.path} was changed after it was validated "
            f"(SHA-256 {found[:12]}, expected {dataset.sha256[:12]}); create the dataset again"
        )


def _check_new(store: Store, name: str) -> None:
    check_name(name, "dataset")
    if store.get(Dataset, name) is not None:
        raise Conflict(f"dataset {name!r} exists already; choose another name or delete it first")


def _refuse_in_use(store: Store, name: str) -> None:
    busy = [JobState.CREATED.value, JobState.RUNNING.value, JobState.CANCELLING.value]
    for job in store.find(Job, {"state": {"$in": busy}}):
        if name in (job.dataset, job.evaluation_dataset):
            raise Conflict(
                f"dataset {name!r} is used by job {job.id} ({job.state}); cancel it first"
            )


def _write(
    home: Home, name: str, rows: Iterable[ChatRow], source: str, description: str
) -> Dataset:
    """Write the rows to a new file and return its document, which is not stored yet."""
    folder = home.datasets.absolute()  # the document is read from other working directories
    final = folder / f"{new_id(name)}.jsonl"
    partial = final.with_suffix(".partial")
    digest, num_rows = hashlib.sha256(), 0
    try:
        with partial.open("wb") as file:
            for row in rows:
                line = row.to_json().encode() + b"\n"
                digest.update(line)
                file.write(line)
                num_rows += 1
            file.flush()
            os.fsync(file.fileno())
        partial.replace(final)
    except OSError as error:
        raise DatasetError(
            f"cannot write dataset {name!r} to {folder}: {error.strerror}; "
            "free space or set QUICKMATCH_HOME to another folder"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return Dataset(
        id=name,
        created_at=wall(),
        path=str(final),
        num_rows=num_rows,
        sha256=digest.hexdigest(),
        source=source,
        description=description,
    )


def _insert(store: Store, dataset: Dataset) -> Dataset:
    try:
        store.insert(dataset)
    except BaseException:
        Path(dataset.path).unlink(missing_ok=True)
        raise
    return dataset


def _choose(
    rows: list[ChatRow], holdout: float, seed: int, stratify_by: str | None, name: str
) -> set[int]:
    """Return the indexes of the rows to hold out, shuffled within each stratum."""
    strata: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        strata[_stratum(row, stratify_by, f"dataset {name} row {index + 1}")].append(index)
    chosen: set[int] = set()
    for value, members in sorted(strata.items()):
        random.Random(f"{seed}/{value}").shuffle(members)
        chosen.update(members[: round(len(members) * holdout)])
    if not chosen or len(chosen) == len(rows):
        raise DatasetError(
            f"a holdout of {holdout} of {len(rows)} rows in {len(strata)} strata leaves one side "
            "empty; use more rows or another share"
        )
    return chosen


def _stratum(row: ChatRow, field: str | None, where: str) -> str:
    if field is None:
        return ""
    tags: Any = row.metadata.get("tags")
    for holder in (row.metadata, tags):
        if isinstance(holder, dict) and field in holder:
            return str(holder[field])
    raise DatasetError(f"{where} has no tag or metadata field {field!r} to stratify by")
