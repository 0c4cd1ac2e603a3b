"""From `quickmatch serve` to the first answer, as a user meets it.

A process in a home of its own, asked over HTTP until it answers; the clock starts with the
process. Its first start on a machine also reads the files from disk, so it does not count.
"""

import json
import os
import shutil
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

_SHIPPED = "quickmatch-base"
_TIMEOUT_S = 120.0
_PAUSE_S = 0.01
_COMMAND = (sys.executable, "-m", "quickmatch.cli.main")
_REPETITIONS = 3


def seconds_to_first_answer(model: Path | None = None) -> list[float]:
    """Start it some times, with the shipped model or a folder's.

    Raises RuntimeError if it does not answer.
    """
    return [_first_answer_s(model) for _ in range(1 + _REPETITIONS)][1:]


def saved_in(quantization: str, model: Path) -> Path:
    """Return the folder that `quickmatch quantize` makes of a model; made now unless it is there.

    Raises CalledProcessError.
    """
    folder = model.parent / f"{model.name}-{quantization}"
    if not folder.is_dir():
        draft = folder.with_suffix(".part")  # renamed when whole: a broken run leaves no folder
        shutil.rmtree(draft, ignore_errors=True)
        with tempfile.TemporaryDirectory() as home:
            subprocess.run(
                [*_COMMAND, "quantize", str(model), "--to", quantization, "--out", str(draft)],
                env=_environ(Path(home)),
                check=True,
                stdout=sys.stderr,
            )
        draft.rename(folder)
    return folder


def _environ(home: Path) -> dict[str, str]:
    return {**os.environ, "QUICKMATCH_HOME": str(home / "home")}


def _first_answer_s(model: Path | None) -> float:
    LOGS.mkdir(exist_ok=True)
    port = _free_port()
    command = [*_COMMAND, "serve", *([] if model is None else [str(model)]), "--port", str(port)]
    name = _SHIPPED if model is None else model.name
    with tempfile.TemporaryDirectory() as home, (LOGS / "serve.log").open("wb") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=_environ(Path(home)), stdout=log, stderr=log, start_new_session=True
        )
        try:
            while not _answers(port, name):
                is_late = time.perf_counter() - started > _TIMEOUT_S
                if is_late or process.poll() is not None:
                    raise RuntimeError("quickmatch serve gave no answer; see .logs/serve.log")
                time.sleep(_PAUSE_S)
            return time.perf_counter() - started
        finally:
            _stop(process)


def _answers(port: int, model: str) -> bool:
    body = {"model": model, "prompt": "Hello", "max_tokens": 1}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
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
