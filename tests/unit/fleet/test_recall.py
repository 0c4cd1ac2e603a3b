"""Past answers come back into a started engine: whose, which, in what order, how many."""

import asyncio
from typing import Any

from quickmatch.store.documents import Trace
from tests.unit.fleet.conftest import Harness
from tests.unit.fleet.test_deployments import deploy


def record(harness: Harness, number: int, text: str, **fields: Any) -> None:
    message = {"message": {"role": "assistant", "content": text}}
    values = {
        "id": f"t{number}", "trace_id": f"t{number}", "created_at": float(number),
        "tenant": "default", "endpoint": "chat", "model": "tiny", "model_version": "tiny@1",
        "deployment": "tiny", "request": {}, "response": {"choices": [message]},
        "usage": {"completion_tokens": 10}, **fields,
    }  # fmt: skip
    harness.store.insert(Trace(**values))


async def test_answers_of_these_weights_come_back_by_tenant_oldest_first(harness: Harness) -> None:
    record(harness, 1, "one")
    record(harness, 2, "two", tenant="acme")
    record(harness, 3, "three", model_version="red@1")
    record(harness, 4, "four")
    record(harness, 5, "five", response={"choices": [{"text": "5a"}, {"text": "5b"}]})
    record(harness, 6, "elsewhere", deployment="other")
    record(harness, 7, "older weights", model_version="tiny@0")
    record(harness, 8, "failed", status=500)
    record(harness, 9, "no answer", response=None)
    deploy(harness, adapters={"red": 1})
    await harness.until(lambda: bool(harness.backends and len(harness.backends[0].remembered) >= 6))
    assert harness.backends[0].remembered == [
        ("default", None, "one"),
        ("acme", None, "two"),
        ("default", "red@1", "three"),
        ("default", None, "four"),
        ("default", None, "5a"),
        ("default", None, "5b"),
    ]


async def test_the_newest_that_fit_and_again_after_a_restart(harness: Harness) -> None:
    for number in range(150):
        record(harness, number, f"answer {number}")
    deploy(harness)
    await harness.until(
        lambda: bool(harness.backends and len(harness.backends[0].remembered) >= 99)
    )
    backend = harness.backends[0]
    expected = [("default", None, f"answer {number}") for number in range(50, 150)]
    await harness.until(lambda: backend.remembered == expected)
    backend.kill()
    await harness.until(lambda: backend.remembered == expected * 2)


async def test_an_adapter_that_comes_later_is_recalled_then(harness: Harness) -> None:
    record(harness, 1, "base")
    record(harness, 2, "red", model_version="red@1")
    deploy(harness)
    await harness.until(lambda: bool(harness.backends and harness.backends[0].remembered))
    harness.change(adapters={"red": 1})
    backend = harness.backends[0]
    await harness.until(lambda: len(backend.remembered) == 2)
    assert backend.remembered == [("default", None, "base"), ("default", "red@1", "red")]


async def test_a_backend_that_remembers_nothing_is_left_in_peace(harness: Harness) -> None:
    record(harness, 1, "base")
    deploy(harness)
    await harness.until_state("READY")
    backend = harness.backends[0]
    await harness.until(lambda: bool(backend.remembered))
    backend.max_remembered_tokens = 0
    backend.kill()
    await harness.until(lambda: harness.deployment().num_restarts == 1)
    await harness.until_state("READY")
    await asyncio.sleep(0.05)
    assert len(backend.remembered) == 1
