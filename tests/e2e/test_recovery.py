"""kill -9 of the engine: 503 at once, then service again without anyone's doing."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from quickmatch.fleet.embedded import RETRY_WAIT_S
from quickmatch.fleet.ownership import is_alive
from quickmatch.store.documents import DeploymentState
from tests.e2e.conftest import Server, make_home, serving, wait_until


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=120, limits=httpx.Limits(max_connections=64)) as client:
        yield client


def chat(http: httpx.Client, server: Server, **fields: object) -> httpx.Response:
    body = {
        "model": "red",
        "messages": [{"role": "user", "content": "are you there"}],
        "temperature": 0,
        "max_tokens": 8,
        **fields,
    }
    headers = {"Cache-Control": "no-store"}
    url = f"{server.url}/v1/chat/completions"
    return http.post(url, json=body, headers=headers)


@pytest.fixture
def broken_stream(server: Server) -> tuple[list[str], threading.Thread]:
    """A long stream that is running when the engine dies."""
    lines: list[str] = []

    def read() -> None:
        body = {
            "model": "tiny",
            "prompt": "go on",
            "max_tokens": 500,
            "ignore_eos": True,
            "stream": True,
        }
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as r:
            lines.extend(line for line in r.iter_lines() if line)

    thread = threading.Thread(target=read)
    thread.start()
    return lines, thread


def test_engine_dies_and_comes_back(
    http: httpx.Client, server: Server, broken_stream: tuple[list[str], threading.Thread]
) -> None:
    lines, thread = broken_stream
    before = chat(http, server).json()["choices"][0]["message"]["content"]
    num_restarts, pid = server.deployment().num_restarts, server.engine_pid()
    with ThreadPoolExecutor(64) as pool:
        long = pool.submit(chat, http, server, max_tokens=400, ignore_eos=True)
        time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        calls: list[Future[httpx.Response]] = []

        def is_back() -> bool:
            calls.append(pool.submit(chat, http, server))
            time.sleep(0.25)
            document = server.deployment()
            return (
                document.num_restarts == num_restarts + 1
                and document.state == DeploymentState.READY
            )

        wait_until(is_back, "a restarted engine")
        responses = [call.result() for call in calls]
    thread.join()
    took_s = time.monotonic() - began
    print(f"engine back after {took_s:.1f} s")
    refused = [r for r in responses if r.status_code == 503]
    assert {r.status_code for r in responses} <= {200, 503}
    assert refused
    assert all(r.headers["retry-after"] for r in refused)
    assert {r.json()["error"]["code"] for r in refused} == {"engine_unavailable"}
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.engine_pid() != pid
    # A call of which nothing had been sent was begun anew, if it did not have to wait too long.
    if took_s < RETRY_WAIT_S - 5:
        assert long.result().json()["usage"]["completion_tokens"] == 400
    # The adapter is back too, with the same answer; the broken stream was told, not cut off.
    assert chat(http, server).json()["choices"][0]["message"]["content"] == before
    assert lines[-1] == "data: [DONE]" or "engine_unavailable" in lines[-1]


@pytest.mark.slow
def test_a_killed_server_leaves_no_engine_and_the_next_one_takes_over(
    http: httpx.Client, tmp_path: Path
) -> None:
    home = make_home(tmp_path, ("red",))
    with serving(tmp_path, home, ("red",)) as first:
        answer = chat(http, first).json()["choices"]
        engine_pid = first.engine_pid()
        first.process.kill()
        first.process.wait()
        wait_until(lambda: not is_alive(engine_pid), "no engine without its server", 10)
        assert first.deployment().server_pid == first.process.pid
    with serving(tmp_path, home, ("red",)) as second:
        assert chat(http, second).json()["choices"] == answer
        engine_pid = second.engine_pid()
    assert not is_alive(engine_pid)
