"""Which server process looks after a deployment: claims, and claims left by dead servers.

A claim is the server's process id in the deployment's document, with that process's own start
time, because a process id is used again. Invariant: two live servers never hold one deployment;
the claim is one atomic update of the store.
"""

import os
from pathlib import Path

from quickmatch.core.errors import Conflict, NotFound
from quickmatch.store.documents import Deployment, DeploymentState
from quickmatch.store.protocol import Store


def process_started_at(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot, 0 where it is unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The second field is the command in parentheses and may hold spaces; the 22nd is the time.
    return int(stat.rpartition(")")[2].split()[19])


def is_alive(pid: int, started_at: int = 0) -> bool:
    """Return whether that very process runs. `started_at` 0: any process of that id."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as another user
        pass
    return started_at in (0, process_started_at(pid))


def is_free(document: Deployment) -> bool:
    """Return whether this process may take the deployment up."""
    if document.server_pid in (0, os.getpid()):
        return True
    return not is_alive(document.server_pid, document.engine_info.get("server_started_at", 0))


def claim(store: Store, name: str, url: str) -> Deployment | None:
    """Take a deployment up for this process. None if another live server has it, or it is gone."""

    def take(document: Deployment) -> None:
        if not is_free(document) or not document.wanted:
            raise Conflict(f"deployment {name!r} is served by process {document.server_pid}")
        document.server_pid = os.getpid()
        document.url = url
        document.state = DeploymentState.STARTING
        document.error = ""
        document.adapter_status = {}
        document.draft_status = {}
        document.engine_info = {"server_started_at": process_started_at(os.getpid())}

    try:
        return store.update(Deployment, name, take)
    except (Conflict, NotFound):
        return None


def release(store: Store, name: str, state: DeploymentState, error: str = "") -> None:
    """Give a deployment back: no engine behind it any more. Quiet if its document is gone."""

    def give(document: Deployment) -> None:
        if document.server_pid != os.getpid():
            raise Conflict(f"deployment {name!r} is served by process {document.server_pid}")
        document.server_pid = 0
        document.state = state
        document.error = error
        document.url = ""
        document.ready_at = None
        document.adapter_status = {}
        document.draft_status = {}
        document.engine_info = {}

    try:
        store.update(Deployment, name, give)
    except (Conflict, NotFound):
        return


def mark_stopped(store: Store, name: str) -> None:
    """Say STOPPED of a deployment that nobody wants and no live server has."""

    def stop(document: Deployment) -> None:
        if document.wanted or not is_free(document):
            raise Conflict(f"deployment {name!r} is served by process {document.server_pid}")
        document.server_pid = 0
        document.state = DeploymentState.STOPPED

    try:
        store.update(Deployment, name, stop)
    except (Conflict, NotFound):
        return
