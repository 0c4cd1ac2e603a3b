"""A caller who hangs up stops the generation behind the call, streamed or not."""

import contextlib
import re

import httpx
import pytest

from tests.e2e.conftest import Server, wait_until

LONG = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "go on"}],
    "max_tokens": 480,
    "ignore_eos": True,
    "n": 16,
}


def gauge(server: Server, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    found = re.search(rf'^quickmatch_{name}(?:{{deployment="tiny"}})? (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def num_hung_up(server: Server) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    found = re.search(r'requests_total{model="tiny",status="499"} (\S+)', text)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_frees_the_engine(server: Server, stream: bool) -> None:
    hung_up = num_hung_up(server)
    steps_before = gauge(server, "engine_decode_tokens")
    if stream:
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json={**LONG, "stream": True}
        ) as response:
            assert next(response.iter_lines()).startswith("data:")
    else:
        with contextlib.suppress(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json=LONG, timeout=0.3)
    wait_until(lambda: num_hung_up(server) == hung_up + 1, "a call counted as hung up", 5)
    wait_until(lambda: gauge(server, "engine_running_requests") == 0, "an idle engine", 5)
    wait_until(lambda: gauge(server, "requests_in_flight") == 0, "no call in flight", 5)
    num_decoded = gauge(server, "engine_decode_tokens") - steps_before
    assert num_decoded < 480 * 16
