"""Quickmatch as its user has it: the command, a server in the background, the store to read.

The demo types the same commands as a person would and shows each one. Only two things go past the
command line: progress is read from the store, and the adapter is put on the deployment by the
same write that `quickmatch load-lora` makes, because starting a Python process would be most of
the time that is measured there.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from examples.credit_cards.screen import Screen
from quickmatch.cli.server_lock import running_server
from quickmatch.core.settings import Home
from quickmatch.store.documents import Deployment, DeploymentState, Job
from quickmatch.store.open import open_store
from quickmatch.store.protocol import Store, require
from quickmatch.tuning.processes import terminate

STOP_S = 15.0
T = TypeVar("T")


class StageError(Exception):
    """A stage failed; the message is the one line that the user sees."""


class Product:
    """An installation of its own for this run."""

    def __init__(self, home: Path, screen: Screen) -> None:
        """Make an empty home. Raises StageError while an earlier demo's server uses it."""
        self.home, self._screen = Home(home.resolve()), screen
        server = running_server(self.home) if self.home.root.exists() else None
        if server is not None:
            raise StageError(
                f"an earlier demo's server still runs in {home} (pid {server.pid}); "
                f"stop it with: kill {server.pid}"
            )
        shutil.rmtree(self.home.root, ignore_errors=True)
        self.home.root.mkdir(parents=True)
        self.store: Store = open_store(self.home)
        self._environment = {**os.environ, "QUICKMATCH_HOME": str(self.home.root)}

    def run(self, *arguments: str) -> Any:
        """Run a command and return its JSON result. Raises StageError with what it said."""
        self._screen.command(arguments)
        done = subprocess.run(
            [*_COMMAND, *arguments, "-o", "json"],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StageError(f"quickmatch {arguments[0]} failed: {_said(done.stderr)}")
        return json.loads(done.stdout)

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def stop_job(self, job_id: str) -> None:
        """Cancel a job unless it has ended, and see to it that its process goes."""
        job = require(self.store, Job, job_id)
        if job.state.is_final:
            return
        self.run("cancel", job_id)
        end = time.monotonic() + STOP_S
        while time.monotonic() < end and not require(self.store, Job, job_id).state.is_final:
            time.sleep(0.1)
        job = require(self.store, Job, job_id)
        if not job.state.is_final and job.pid:
            terminate(job.pid, job.pid_started_at)

    @contextmanager
    def serving(self, model: str, keep: Callable[[], bool], *options: str) -> Iterator[str]:
        """Serve `model` for the length of the block; yield the URL.

        keep: asked at the end; True leaves the server up. Raises StageError if it does not start.
        """
        arguments = ["serve", model, "--port", "0", *options]
        self._screen.command(arguments)
        log = self.home.root / "server.log"
        with background([*_COMMAND, *arguments], log, self._environment, keep) as process:
            yield self._until_ready(model, process, log)

    def _until_ready(self, model: str, process: subprocess.Popen[bytes], log: Path) -> str:
        def is_up() -> str | None:
            found = self.store.get(Deployment, model)
            server = running_server(self.home)
            if found is not None and found.state is DeploymentState.FAILED:
                raise StageError(f"{model} cannot be served: {found.error}")
            is_ready = found is not None and found.state is DeploymentState.READY
            return server.url if server is not None and is_ready else None

        return wait_until(is_up, process, log, "the server", 120.0)


@contextmanager
def background(
    command: list[str], log: Path, environment: dict[str, str], keep: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process for the length of the block, in a session of its own, output to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the demo alone; it stops the rest in order
        )
    try:
        yield process
    finally:
        if not keep():
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and make it end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(
    check: Callable[[], T | None],
    process: subprocess.Popen[bytes],
    log: Path,
    what: str,
    timeout_s: float,
) -> T:
    """Poll until `check` returns something. Raises StageError if the process ends before."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if (found := check()) is not None:
            return found
        if process.poll() is not None:
            raise StageError(f"{what} ended with code {process.returncode}: {_last_line(log)}")
        time.sleep(0.05)
    raise StageError(f"{what} was not ready after {timeout_s:.0f} s; see {log}")


def _last_line(log: Path) -> str:
    return _said(log.read_text(errors="replace"))


def _said(text: str) -> str:
    """Return the line that tells the error, without its prefix."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ")] or lines or ["no output"]
    try:
        return str(json.loads(told[-1])["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return told[-1].removeprefix("error: ")


_COMMAND = [sys.executable, "-m", "quickmatch.cli.main"]
