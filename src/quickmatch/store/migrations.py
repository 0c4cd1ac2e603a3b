"""The store file's schema, as ordered steps that are recorded in the file itself.

Owns which tables there are and which steps a file has been through. A step, once released, never
changes: a new need is a new function at the end of MIGRATIONS. All steps of one opening run in
one transaction, so that a file is never half migrated, and two processes that open a new file at
once take turns. Indexes over document fields follow `Document.indexed` and are no steps: they
hold no data and are made where they are missing.
"""

import sqlite3
from collections.abc import Callable

from quickmatch.core.clock import wall
from quickmatch.core.errors import StoreError
from quickmatch.store.documents import DOCUMENT_KINDS
from quickmatch.store.filters import extract

Migration = Callable[[sqlite3.Connection], None]


def m001_documents(connection: sqlite3.Connection) -> None:
    """One table for all kinds: the JSON body, and beside it what every document has."""
    connection.execute(
        """CREATE TABLE documents (
            kind TEXT NOT NULL,
            id TEXT NOT NULL,
            revision INTEGER NOT NULL,
            created_at REAL NOT NULL,
            body TEXT NOT NULL,
            UNIQUE (kind, id)
        )"""
    )
    connection.execute("CREATE INDEX documents_by_time ON documents (kind, created_at, id)")


MIGRATIONS: tuple[Migration, ...] = (m001_documents,)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file up to this version's schema. Raises StoreError on a newer or foreign file.

    The connection is in autocommit mode; sqlite3's own errors pass through.
    """
    if _schema_version(connection) == len(MIGRATIONS) and not _missing_indexes(connection):
        return  # the common case writes nothing and takes no lock
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _schema_version(connection)
        if version == 0:
            _refuse_foreign(connection)
            connection.execute(
                "CREATE TABLE IF NOT EXISTS migrations "
                "(version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at REAL NOT NULL)"
            )
        for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
            step(connection)
            connection.execute(
                "INSERT INTO migrations VALUES (?, ?, ?)", (number, step.__name__, wall())
            )
        for statement in _missing_indexes(connection):
            connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _schema_version(connection: sqlite3.Connection) -> int:
    if not _names(connection, "table") & {"migrations"}:
        return 0
    (version,) = connection.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the store has schema {version}, this Quickmatch knows schemas up to "
            f"{len(MIGRATIONS)}; upgrade quickmatch, or point QUICKMATCH_HOME at another folder"
        )
    return int(version)


def _refuse_foreign(connection: sqlite3.Connection) -> None:
    tables = _names(connection, "table") - {"migrations"}
    if tables:
        raise StoreError(
            f"the store file is another program's SQLite file (it holds {sorted(tables)[0]!r}); "
            "point QUICKMATCH_HOME at another folder"
        )


def _missing_indexes(connection: sqlite3.Connection) -> list[str]:
    """Return the statements that make the indexes that `Document.indexed` asks for."""
    there = _names(connection, "index")
    return [
        f"CREATE INDEX {name} ON documents ({extract(field, kind.indexed)[0]}, created_at) "
        f"WHERE kind = '{kind.kind}'"
        for kind in DOCUMENT_KINDS
        for field in kind.indexed
        if (name := f"{kind.kind}_by_{field.replace('.', '_')}") not in there
    ]


def _names(connection: sqlite3.Connection, type: str) -> set[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = ?", (type,))
    return {name for (name,) in rows if not name.startswith("sqlite_")}
