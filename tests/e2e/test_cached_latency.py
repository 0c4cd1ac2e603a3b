"""A cached call adds less than 5 ms to what the client itself spends, on loopback.

What is held against the bar is ours: the server's processor time, and how long a client waits on
top of its own processor time. The official client's own takes longer than the server's, and all
of it doubles on a busy machine, which the wall clock alone would measure. It is printed beside
(`pytest -s`).
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.e2e.conftest import Server

NUM_CALLS = 300
BAR_MS = 5.0


@dataclass
class Cost:
    """Milliseconds a call."""

    server_ms: float  # processor time of the server
    client_ms: float  # processor time of the client
    wall_ms: float  # median
    best_ms: float  # wall clock of the fastest tenth: no delay that every call meets

    @property
    def waited_ms(self) -> float:
        """The client's wall clock beyond its own work: the server, the wire and any delay."""
        return self.best_ms - self.client_ms


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost(server: Server, call: Callable[[], object]) -> Cost:
    for _ in range(20):
        call()
    times: list[float] = []
    server_s, client_s = cpu_s(server.process.pid), time.process_time()
    for _ in range(NUM_CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    server_ms = (cpu_s(server.process.pid) - server_s) / NUM_CALLS * 1e3
    client_ms = (time.process_time() - client_s) / NUM_CALLS * 1e3
    fastest_s = statistics.quantiles(times, n=10)[0]
    return Cost(server_ms, client_ms, statistics.median(times) * 1e3, fastest_s * 1e3)


def test_cached_call_is_fast(server: Server) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "what is the card " * 20}],
        "temperature": 0,
        "max_tokens": 64,
    }
    url = f"{server.url}/v1/chat/completions"
    with httpx.Client() as http, server.client() as official:
        plain = cost(server, lambda: http.post(url, json=body))
        assert http.post(url, json=body).headers["x-quickmatch-cache"] == "hit"
        create = official.chat.completions.create
        openai = cost(server, lambda: create(**body))  # type: ignore[call-overload]
    print(f"a cached call by httpx: {plain}; by the openai client: {openai}")
    for measured in (plain, openai):
        assert measured.server_ms < BAR_MS
        assert measured.waited_ms < BAR_MS
