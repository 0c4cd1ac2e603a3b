"""Connections to one SQLite file: opened as they are needed, used by one thread at a time.

Owns the file's pragmas and the translation of SQLite's errors into ours. Knows no documents.

Key decisions:
- WAL, so that readers never wait for the writer and a killed process loses nothing committed.
- synchronous=NORMAL. In WAL mode it keeps the file whole through a power cut and loses at most
  the last commits; FULL would wait for the disk at each trace and each heartbeat. A killed
  process loses nothing either way, because the pages are the kernel's by then.
  Source: sqlite.org/pragma.html#pragma_synchronous.
- A pool rather than thread-locals: as many connections as threads that work at once, and none
  left behind by threads that ended.
- Threads of one process queue for the write at a lock of ours, which is fair; only processes
  meet at SQLite's busy timeout, which polls.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quickmatch.core.errors import StoreError

BUSY_TIMEOUT_S = 15.0
_WAL_RETRY_S = 0.05


class Connections:
    """A pool of connections to the file at `path`. Raises StoreError where SQLite fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection; each statement sees the newest commit."""
        with self._translated():
            connection = self._take()
            try:
                yield connection
            finally:
                self._give(connection)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection inside a write transaction: all of it is kept, or none."""
        with self.reading() as connection, self._write_lock:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk has rolled back by itself
                    connection.execute("ROLLBACK")
                raise

    def open(self) -> sqlite3.Connection:
        """Return a connection of its own, which the caller closes."""
        with self._translated():
            return self._connect()

    def close(self) -> None:
        """Close the idle connections; those lent out close as they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise StoreError(f"store {self.path} is closed; open it again")
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            _set_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self.explain(error) from error

    def explain(self, error: sqlite3.Error) -> StoreError:
        """Return the StoreError that says what happened to the file, and the remedy."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        remedy = _REMEDIES.get(code, "see the reason given and retry")
        return StoreError(f"store {self.path} failed: {error}; {remedy}")


_REMEDIES = {
    sqlite3.SQLITE_FULL: "free space on that disk and retry; nothing was half-written",
    sqlite3.SQLITE_BUSY: (
        f"another process has held it for {BUSY_TIMEOUT_S:.0f} s; end that process or retry"
    ),
    sqlite3.SQLITE_CORRUPT: (
        "the file is damaged; restore a backup, or move it away to start an empty store"
    ),
    sqlite3.SQLITE_NOTADB: (
        "the file is damaged or not a store; restore a backup, or move it away to start "
        "an empty store"
    ),
    sqlite3.SQLITE_READONLY: "make the file and its folder writable for this user",
    sqlite3.SQLITE_CANTOPEN: "check that the folder exists and is readable and writable",
    sqlite3.SQLITE_IOERR: "the disk reports an error; check its space and health",
}


def _set_wal(connection: sqlite3.Connection) -> None:
    """Switch the file to WAL. SQLite skips its busy timeout here, so wait ourselves."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_WAL_RETRY_S)
    if mode != "wal":
        raise StoreError(
            f"the store's file system cannot do write-ahead logging (got mode {mode!r}); "
            "point QUICKMATCH_HOME at a folder on a local disk"
        )
