"""One server a home: a locked file says whether it runs, where, and as which process.

The kernel drops the lock with the process, however it ends, so a stale file misleads nobody.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from quickmatch.core.errors import Conflict, Unavailable
from quickmatch.core.settings import Home


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where the home's server answers."""

    pid: int
    url: str  # ends in /v1


@contextmanager
def hold(home: Home, url: str) -> Iterator[None]:
    """Be the home's server for the length of the block. Raises Conflict if there is one."""
    with _path(home).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = running_server(home)
            where = f" at {other.url} (pid {other.pid})" if other else ""
            raise Conflict(
                f"a server is already running for {home.root}{where}; use `quickmatch deploy` to "
                "add a model to it, stop it, or set QUICKMATCH_HOME to another folder"
            ) from None
        file.truncate(0)
        file.write(json.dumps(asdict(RunningServer(os.getpid(), url))))
        file.flush()
        yield


def running_server(home: Home) -> RunningServer | None:
    """Return the home's server if one runs."""
    path = _path(home)
    if not path.exists():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = file.read()
            return RunningServer(**json.loads(text)) if text else None
    return None


def require_server_url(home: Home, url: str | None) -> str:
    """Return `url`, or the running server's. Raises Unavailable if there is neither."""
    if url:
        return url.rstrip("/")
    server = running_server(home)
    if server is None:
        raise Unavailable(
            f"no server is running for {home.root}; start one with `quickmatch serve`, or name "
            "one with --url http://HOST:PORT/v1"
        )
    return server.url


def _path(home: Home) -> Path:
    return home.run / "server.json"
