"""The demo, whole and small: real server, real job, real report; and a clean end on Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from quickmatch.cli.server_lock import running_server
from quickmatch.core.settings import Home
from quickmatch.store.documents import Deployment, JobState
from quickmatch.store.documents import Job as JobDocument
from quickmatch.store.open import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "examples.credit_cards.demo", "--quick", "--out", str(out)]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_server(out: Path) -> None:
    server = running_server(Home((out / "home").resolve()))
    if server is not None:
        os.kill(server.pid, signal.SIGTERM)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "report"
    if (tmp_path / "report" / "home").exists():
        kill_server(tmp_path / "report")


def test_quick_run_ends_with_a_report_and_the_server_up(out: Path) -> None:
    process = start(out, "--serve")
    output, _ = process.communicate(timeout=540)
    assert process.returncode == 0, output
    report = json.loads((out / "report.json").read_text())
    for names in ("fact_accuracy", "number_accuracy", "rouge_l", "bleu", "perplexity"):
        assert {"base", "tuned", "interval_95"} <= set(report[names])
    assert report["fact_accuracy"]["teacher"] == 1.0
    assert report["number_accuracy"]["teacher"] == 1.0
    assert report["perplexity"]["tuned"] < report["perplexity"]["base"]
    assert report["switch"]["num_failed"] == 0
    assert report["switch"]["num_requests"] > 0
    assert report["teacher"]["num_traces"] == report["teacher"]["num_answers"] == 60
    assert report["num_held_out"] == 12
    assert 0 < report["cached_p50_ms"] < report["latency_ms"]["p50"]
    assert 0 < report["adapter_live_s"] < 30
    assert report["adapter_bytes"] > 0
    drafted = report["speculation"]
    for name in ("plain", "cold", "warm", "head"):
        assert drafted[name]["num_requests"] == 4
        assert drafted[name]["latency_ms"]["p50"] > 0
        assert drafted[name]["tokens_per_s"] > 0
    assert drafted["plain"]["accepted_length"] is None
    assert drafted["plain"]["speed_up"] == 1.0
    assert drafted["cold"]["index_tokens"] == 0
    assert drafted["warm"]["index_tokens"] > 0
    assert drafted["warm"]["accepted_length"] >= 1.0
    assert 0 < drafted["warm"]["hit_rate"] <= 1
    assert 0 < drafted["swap_s"] < 0.5
    assert drafted["num_during_swap"] > 0
    assert drafted["num_failed"] == 0
    assert drafted["num_compared"] == 4
    assert 0 <= drafted["same_text_share"] <= 1
    assert drafted["job"]["metrics"]["num_steps"] == 4
    assert [p["phase"] for p in drafted["course"]][:2] == ["plain", "cold"]
    for command in ("create draft-job --model quickmatch-base", "load-draft credit-draft"):
        assert f"$ quickmatch {command}" in output
    assert "scripted writer (a grammar, not a language model)" in output
    assert "<svg" in (out / "report.html").read_text()
    server = running_server(Home((out / "home").resolve()))
    assert server is not None
    names = [m["id"] for m in httpx.get(f"{server.url}/models", trust_env=False).json()["data"]]
    assert "credit-explainer" in names
    assert f"kill {server.pid}" in output

    again = start(out)  # in the same folder, while that server runs
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 1
    assert f"an earlier demo's server still runs in {out / 'home'} (pid {server.pid})" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_training_stops_everything(out: Path, number: signal.Signals) -> None:
    process = start(out)
    home = Home((out / "home").resolve())
    pids = wait_for_job(home)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "nothing is left running" in output
    assert running_server(home) is None
    end = time.monotonic() + 20
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < end, f"still there of job and engine {pids}: {left}"
        time.sleep(0.1)
    store = open_store(home)
    job = next(store.find(JobDocument))
    assert job.state in (JobState.CANCELLED, JobState.CANCELLING, JobState.COMPLETED)
    store.close()


def test_a_teacher_that_is_not_there_is_one_clear_line(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", "key")
    process = start(out, "--teacher", "http://127.0.0.1:9/v1", "--teacher-model", "big")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    last = output.strip().splitlines()[-1]
    assert last.startswith("failed: the teacher (big at http://127.0.0.1:9/v1) failed: 502: ")
    assert "Traceback" not in output
    assert running_server(Home((out / "home").resolve())) is None


def wait_for_job(home: Home) -> list[int]:
    """Wait until a job runs; return its process id and the engine's."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if home.store_path.exists():
            store = open_store(home)
            jobs = [job for job in store.find(JobDocument) if job.pid]
            engines = [d.engine_info.get("pid") for d in store.find(Deployment)]
            store.close()
            if jobs:
                return [jobs[0].pid, *(int(pid) for pid in engines if pid)]
        time.sleep(0.2)
    raise AssertionError("no job was started")


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
