"""Past answers come back into a started engine: whose, which, in what order, how many."""

import asyncio
from typing import Any

import pytest

from quickmatch.core.errors import StoreError
from quickmatch.fleet.recall import MAX_TRIES
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


async def test_answers_come_back_under_the_isolation_key_they_were_asked_with(
    harness: Harness,
) -> None:
    for number, key in enumerate((None, "mine", "mine", "yours")):
        record(harness, number, f"{number}", request={"prompt_cache_isolation_key": key})
    deploy(harness)
    await harness.until(lambda: bool(harness.backends and len(harness.backends[0].remembered) == 4))
    keys = [answer.call.isolation_key for answer in harness.backends[0].past_answers]
    assert keys == ["", "mine", "mine", "yours"]


async def test_what_the_exact_cache_answered_takes_no_room(harness: Harness) -> None:
    record(harness, 0, "older")
    record(harness, 1, "computed")
    for number in range(2, 120):
        record(harness, number, "computed", cache="hit")
    deploy(harness)
    await harness.until(lambda: bool(harness.backends and len(harness.backends[0].remembered) >= 2))
    await harness.until_state("READY")
    assert [text for _, _, text in harness.backends[0].remembered] == ["older", "computed"]


@pytest.mark.parametrize("error", [StoreError("the store is busy"), ValueError("odd")])
async def test_a_recall_that_failed_is_tried_again_but_not_for_ever(
    harness: Harness, error: Exception
) -> None:
    record(harness, 1, "one")
    errors: list[Exception] = [error]
    harness.prepare = lambda backend: setattr(backend, "remember_errors", errors)
    deploy(harness)
    await harness.until(lambda: bool(harness.backends and harness.backends[0].remembered))
    assert errors == []
    errors += [error] * 10
    harness.backends[0].kill()
    await harness.until(lambda: len(errors) == 10 - MAX_TRIES)
    await asyncio.sleep(0.1)
    assert len(errors) == 10 - MAX_TRIES


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
