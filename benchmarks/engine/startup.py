"""From `quickmatch serve` to the first answer of the shipped model, as a user meets it.

A process in a home of its own, asked over HTTP until it answers; the clock starts with the
process. Its first start on a machine also reads the files from disk, so it does not count.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.contender import LOGS

_MODEL = "quickmatch-base"
_TIMEOUT_S = 120.0
_PAUSE_S = 0.01
_REPETITIONS = 3


def seconds_to_first_answer() -> list[float]:
    """Start it some times. Raises RuntimeError if it does not answer."""
    return [_first_answer_s() for _ in range(1 + _REPETITIONS)][1:]


def _first_answer_s() -> float:
    LOGS.mkdir(exist_ok=True)
    port = _free_port()
    command = [sys.executable, "-m", "quickmatch.cli.main", "serve", "--port", str(port)]
    with tempfile.TemporaryDirectory() as home, (LOGS / "serve.log").open("wb") as log:
        environ = {**os.environ, "QUICKMATCH_HOME": str(Path(home) / "home")}
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=environ, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while not _answers(port):
                is_late = time.perf_counter() - started > _TIMEOUT_S
                if is_late or process.poll() is not None:
                    raise RuntimeError("quickmatch serve gave no answer; see .logs/serve.log")
                time.sleep(_PAUSE_S)
            return time.perf_counter() - started
        finally:
            _stop(process)


def _answers(port: int) -> bool:
    body = {
        "model": _MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            return bool(json.load(response)["choices"])
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
