"""Job processes as the operating system sees them: start one, ask whether it lives.

Owns what identifies a process: its pid together with its start time, because pids are taken
again. Knows no jobs.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from quickmatch.core.settings import Home

_STARTED_AT_FIELD = 21  # of /proc/PID/stat, counted from 0: clock ticks since boot
_STATE_FIELD = 2


def spawn(home: Home, module: str, argument: str, log: Path) -> int:
    """Start `python -m module argument` in a session of its own; return its pid.

    It outlives this process and its terminal; what it prints is appended to `log`.
    """
    environment = {**os.environ, "QUICKMATCH_HOME": str(home.root.absolute())}
    # Threads that wait must sleep: spinning ones steal the cores that serving needs.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with Path(os.devnull).open("rb") as nothing, log.open("ab") as output:
        files = [
            (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
        ]
        command = [sys.executable, "-m", module, argument]
        return os.posix_spawn(sys.executable, command, environment, file_actions=files, setsid=True)


def started_at(pid: int) -> float | None:
    """Return a number that, with the pid, names one process; None if there is no such process.

    Linux: clock ticks since boot. Elsewhere: what `ps` tells, hashed to a number.
    """
    if pid <= 0:
        return None
    reap(pid)
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return _started_at_by_ps(pid)
    try:
        text = stat.read_text()
    except OSError:
        return None
    # The second field is the program's name in brackets and may hold blanks.
    fields = ["", "", *text[text.rindex(")") + 1 :].split()]
    return None if fields[_STATE_FIELD] in "ZX" else float(fields[_STARTED_AT_FIELD])


def is_alive(pid: int, pid_started_at: float) -> bool:
    """Whether the process of that pid and start time still runs."""
    return started_at(pid) == pid_started_at


def terminate(pid: int, pid_started_at: float) -> None:
    """Ask a job's process to write a checkpoint and end; does nothing if it is gone."""
    if is_alive(pid, pid_started_at):
        os.kill(pid, signal.SIGTERM)


def reap(pid: int) -> None:
    """Let the kernel forget a child that ended; not our child or still running: nothing."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _started_at_by_ps(pid: int) -> float | None:
    found = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return float(sum(found.stdout.encode())) if found.stdout.strip() else None
