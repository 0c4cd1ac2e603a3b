"""A contender as the harness sees it: a process that is asked to load, to generate, to quit.

Ours and every peer run alike, each in a process of its own, so that none has an advantage from
the process it lives in, and each sleeps while another is measured. What a contender prints goes
to benchmarks/.logs/NAME.log, where to look when it fails.

The other end of the pipe is workers/protocol.py.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.peers import Environment, PeerUnavailable
from benchmarks.provenance import REPOSITORY

LOGS = Path(__file__).parent / ".logs"
_LOAD_TIMEOUT_S = 600.0
_GENERATE_TIMEOUT_S = 300.0
_QUIT_TIMEOUT_S = 15.0


class ContenderFailed(Exception):
    """A contender answered with an error, fell silent or died; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContenderSpec:
    """How to start one. `environment` None: the Python that runs the benchmark."""

    name: str
    module: str  # of benchmarks.workers
    environment: Environment | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    log: str = ""  # the name of its log; by default its own


class Contender:
    """A running worker. Use it as a context manager, or call `close`."""

    def __init__(self, spec: ContenderSpec) -> None:
        """Start the process. Raises PeerUnavailable if its environment cannot be had."""
        self.spec = spec
        self.info: dict[str, Any] = {}
        python = sys.executable if spec.environment is None else str(spec.environment.ensure())
        LOGS.mkdir(exist_ok=True)
        self._log_path = LOGS / f"{spec.log or spec.name}.log"
        self._log: IO[bytes] = self._log_path.open("wb")
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.workers.{spec.module}"],
            cwd=REPOSITORY,
            env={**os.environ, **spec.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # its own children end with it
        )
        self._unread = b""

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, model: Path) -> float:
        """Load the model; return the seconds it took. `info` then holds versions."""
        request = {"op": "load", "model": str(model), "options": dict(self.spec.options)}
        reply = self._ask(request, _LOAD_TIMEOUT_S)
        self.info = reply["info"]
        return float(reply["seconds"])

    def generate(self, prompts: list[list[int]], max_tokens: int) -> float:
        """Extend all prompts at once; return the seconds it took."""
        request = {"op": "generate", "prompts": prompts, "max_tokens": max_tokens}
        return float(self._ask(request, _GENERATE_TIMEOUT_S)["seconds"])

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Have it do one of its own operations; return the answer with its `seconds`.

        Raises ContenderFailed with what it says.
        """
        return self._ask({"op": op, **fields}, _GENERATE_TIMEOUT_S)

    def close(self) -> None:
        """End the process and its children."""
        try:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._send({"op": "quit"})
                self._process.wait(_QUIT_TIMEOUT_S)
        finally:
            self._kill()
            self._log.close()

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            self._send(request)
            reply = json.loads(self._read_line(time.monotonic() + timeout_s))
        except (OSError, ValueError) as error:
            raise ContenderFailed(f"{self.spec.name}: {error}") from error
        if not reply["ok"]:
            raise ContenderFailed(f"{self.spec.name}: {reply['error']}")
        return dict(reply)

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def _read_line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise OSError("no answer in time")
            piece = os.read(pipe, 1 << 16)
            if not piece:
                raise OSError(f"the process ended; see {LOGS.name}/{self._log_path.name}")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it had not read is lost with it
                    pipe.close()


def start_all(
    specs: list[ContenderSpec], model: Path, *, required: str
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Start and load every contender; return those that run, and why the others do not.

    Raises what stopped it if that is `required` (ours): without it there is nothing to measure.
    """
    running: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    for spec in specs:
        contender: Contender | None = None
        try:
            contender = Contender(spec)
            seconds = contender.load(model)
            running[spec.name] = contender
            print(f"{spec.name}: loaded in {seconds:.1f} s {contender.info}", flush=True)
        except BaseException as error:
            if contender is not None:
                contender.close()
            if spec.name == required or not isinstance(error, PeerUnavailable | ContenderFailed):
                for other in running.values():
                    other.close()
                raise
            missing[spec.name] = str(error)
            print(f"{spec.name}: not measured: {error}", flush=True)
    return running, missing
