"""The document store in one SQLite file: JSON bodies, each with its kind, id and revision.

Owns how documents become rows and back. Knows no kind's meaning; filters are `filters`, the
file's schema `migrations`, its connections and errors `connections`.

Invariant: a document's revision grows by one each write, and reading, changing and writing it in
`update` is one transaction, so that no change is lost between processes.
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from quickmatch.core.errors import Conflict, NotFound, StoreError
from quickmatch.store.connections import Connections
from quickmatch.store.documents import Document
from quickmatch.store.filters import compile_filter, extract
from quickmatch.store.migrations import migrate
from quickmatch.store.protocol import D, Filter

_SMALL_RESULT = 256  # rows; a larger result streams from a connection of its own


class SqliteStore:
    """`protocol.Store` over the file at `path`, whose folder must exist."""

    def __init__(self, path: Path) -> None:
        self._connections = Connections(path)
        try:
            with self._connections.reading() as connection:
                migrate(connection)
        except BaseException:
            self._connections.close()
            raise
        self._watch_lock = threading.Lock()
        self._watch = self._connections.open()  # never writes, so it sees every write as foreign

    def insert(self, *documents: Document) -> None:
        """Add new documents, all or none. Raises Conflict if an id is taken."""
        with self._connections.writing() as connection:
            for document in documents:
                try:
                    _write(connection, document, revision=1, verb="INSERT")
                except sqlite3.IntegrityError as error:
                    raise Conflict(
                        f"{document.kind} {document.id!r} exists already; "
                        "choose another name or delete it first"
                    ) from error
        for document in documents:
            document.revision = 1

    def put(self, *documents: Document) -> None:
        """Add or replace documents, all or none."""
        revisions = []
        with self._connections.writing() as connection:
            for document in documents:
                row = _read(connection, type(document), document.id)
                revisions.append(row[0] + 1 if row else 1)
                _write(connection, document, revisions[-1], verb="REPLACE")
        for document, revision in zip(documents, revisions, strict=True):
            document.revision = revision

    def get(self, kind: type[D], id: str) -> D | None:
        """Return the document of that id, or None."""
        with self._connections.reading() as connection:
            row = _read(connection, kind, id)
        return _parse(kind, row[1]) if row else None

    def update(self, kind: type[D], id: str, change: Callable[[D], None]) -> D:
        """Read, apply `change` in place, write: one atomic step. Raises NotFound."""
        with self._connections.writing() as connection:
            row = _read(connection, kind, id)
            if row is None:
                raise NotFound(f"no {kind.kind} named {id!r}")
            document = _parse(kind, row[1])
            change(document)
            if document.id != id:
                raise ValueError(f"the change renamed {kind.kind} {id!r} to {document.id!r}")
            document.revision = row[0] + 1
            _write(connection, document, document.revision, verb="REPLACE")
        return document

    def delete(self, kind: type[D], id: str) -> bool:
        """Delete; return whether it was there."""
        return self.delete_many(kind, {"id": id}) > 0

    def delete_many(self, kind: type[D], where: Filter) -> int:
        """Delete all that match; return how many there were."""
        condition, values = _condition(kind, where)
        with self._connections.writing() as connection:
            return connection.execute(f"DELETE FROM documents {condition}", values).rowcount

    def find(
        self,
        kind: type[D],
        where: Filter | None = None,
        *,
        order_by: str = "created_at",
        descending: bool = False,
        limit: int | None = None,
    ) -> Iterator[D]:
        """Yield matching documents in order; ties by id. Consistent as of the first one."""
        condition, values = _condition(kind, where)
        order, order_values = extract(order_by, kind.indexed)
        direction = "DESC" if descending else "ASC"
        query = (
            f"SELECT body FROM documents {condition} ORDER BY {order} {direction}, id {direction}"
        )
        bound = [*values, *order_values]
        if limit is not None:
            query, bound = f"{query} LIMIT ?", [*bound, max(0, limit)]
        return self._stream(kind, query, bound)

    def count(self, kind: type[D], where: Filter | None = None) -> int:
        """Return how many match."""
        condition, values = _condition(kind, where)
        with self._connections.reading() as connection:
            row = connection.execute(f"SELECT count(*) FROM documents {condition}", values)
            return int(row.fetchone()[0])

    def version(self) -> int:
        """Return a number that changes when anyone, in any process, has written. Cheap to poll."""
        try:
            with self._watch_lock:
                return int(self._watch.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error as error:
            raise self._connections.explain(error) from error

    def close(self) -> None:
        """Release files and connections."""
        with self._watch_lock:
            self._watch.close()
        self._connections.close()

    def _stream(self, kind: type[D], query: str, values: list[Any]) -> Iterator[D]:
        """Yield a small result from memory; a large one from a snapshot of its own.

        So a caller may write while it iterates, and a large result is never in memory whole.
        """
        with self._connections.reading() as connection:
            rows = connection.execute(query, values).fetchmany(_SMALL_RESULT + 1)
        if len(rows) <= _SMALL_RESULT:
            yield from (_parse(kind, body) for (body,) in rows)
            return
        with closing(self._connections.open()) as own:
            try:
                for (body,) in own.execute(query, values):
                    yield _parse(kind, body)
            except sqlite3.Error as error:
                raise self._connections.explain(error) from error


def _condition(kind: type[Document], where: Filter | None) -> tuple[str, list[Any]]:
    sql, values = compile_filter(where, kind.indexed)
    # The kind is a constant of the code, written out so that SQLite sees which partial
    # indexes fit.
    return f"WHERE kind = '{kind.kind}' AND {sql}", values


def _read(connection: sqlite3.Connection, kind: type[Document], id: str) -> tuple[int, str] | None:
    row: tuple[int, str] | None = connection.execute(
        "SELECT revision, body FROM documents WHERE kind = ? AND id = ?", (kind.kind, id)
    ).fetchone()
    return row


def _write(connection: sqlite3.Connection, document: Document, revision: int, *, verb: str) -> None:
    body = _dump(document.model_copy(update={"revision": revision}))
    connection.execute(
        f"{verb} INTO documents (kind, id, revision, created_at, body) VALUES (?, ?, ?, ?, ?)",
        (document.kind, document.id, revision, document.created_at, body),
    )


def _dump(document: Document) -> str:
    try:
        return document.model_dump_json()
    except PydanticSerializationError:  # half of a surrogate pair, as JSON escapes can make
        return json.dumps(document.model_dump())


def _parse(kind: type[D], body: str) -> D:
    try:
        return kind.model_validate(json.loads(body))
    except ValidationError as error:
        raise StoreError(
            f"a {kind.kind} in the store does not fit this version of Quickmatch: "
            f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}; upgrade quickmatch"
        ) from error
