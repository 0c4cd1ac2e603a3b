"""Bad input: each a clear error with the right status, and the server goes on."""

import json
from collections import Counter
from random import Random
from typing import Any

import httpx
import openai
import pytest

from quickmatch.gateway.schema import ChatBody, CompletionBody
from tests.e2e.conftest import Server

ASK = [{"role": "user", "content": "hi"}]


def post(server: Server, path: str, **request: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", timeout=30, **request)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "nobody"}, 404, ["'nobody'", "tiny", "red"]),
        ({"model": "red#elsewhere"}, 404, ["'red#elsewhere'"]),
        ({"n": 0}, 400, ["n is 0", "1 to 128"]),
        ({"max_tokens": 0}, 400, ["max_tokens is 0"]),
        ({"max_tokens": 9999}, 400, ["9999", "512", "lower max_tokens to"]),
        ({"temperature": -1}, 400, ["temperature is -1"]),
        ({"temperature": "hot"}, 400, ["temperature", "'hot'"]),
        ({"temprature": 0.5}, 400, ["'temprature'", "did you mean 'temperature'"]),
        ({"messages": []}, 400, ["messages"]),
        ({"messages": [{"role": "user"}]}, 400, ["messages.0 has no content"]),
        ({"messages": [{"role": "user", "content": "x " * 2000}]}, 400, ["512", "shorten"]),
        ({"response_format": {"type": "json_objct"}}, 400, ["response_format.type"]),
        ({"structured_outputs": {"regex": "(a"}}, 400, ["regex cannot be compiled", "unclosed"]),
        ({"structured_outputs": {"json": {"type": "objct"}}}, 400, ["JSON schema", "objct"]),
        ({"top_logprobs": 3}, 400, ["logprobs: true"]),
        ({"logit_bias": {"x": 1}}, 400, ["logit_bias"]),
        ({"logit_bias": {"99999": 1}}, 400, ["99999"]),
        ({"tool_choice": "required"}, 400, ["tool_choice"]),
        ({"stream_options": {"include_usage": True}}, 400, ["stream: true"]),
        ({"stop": ["a"] * 17}, 400, ["17"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_chat_request_is_refused(
    server: Server, fields: dict[str, Any], status: int, words: list[str]
) -> None:
    body = {"model": "tiny", "messages": ASK, **fields}
    response = post(server, "chat/completions", json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": ""}, ["empty"]),
        ({"prompt": []}, ["prompt"]),
        ({"prompt": [99999]}, ["99999"]),
        ({"prompt": {"a": 1}}, ["prompt"]),
        ({"prompt": "a", "best_of": 3}, ["best_of"]),
        ({"prompt": "a", "suffix": "b"}, ["suffix"]),
        ({"prompt": "a", "echo": True, "logprobs": 1}, ["echo"]),
        ({}, ["prompt is missing"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_completion_request_is_refused(
    server: Server, fields: dict[str, Any], words: list[str]
) -> None:
    response = post(server, "completions", json={"model": "tiny", **fields})
    assert response.status_code == 400, response.text
    for word in words:
        assert word in response.json()["error"]["message"]


@pytest.mark.parametrize("body", [b'{"model": "tiny", ', b"", b"[]", b"\xff\xfe", b'"text"'])
def test_malformed_json_is_400(server: Server, body: bytes) -> None:
    response = post(server, "chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_body_too_large_is_413(server: Server) -> None:
    response = post(server, "chat/completions", content=b" " * (17 << 20))
    assert response.status_code == 413


def test_official_client_raises_its_own_errors(server: Server) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.chat.completions.create(model="nobody", messages=ASK)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="tiny", prompt="a " * 3000, max_tokens=1)
    assert raised.value.code == "context_length_exceeded"


STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 3, 1 << 70, 1e308, 0.5, "", "a", "\ud800", "é" * 50, [], {},
    [None], [1, "a"], [[]], {"a": 1}, {"type": "text"}, [{"role": "user", "content": "x"}],
    [{"role": 5}], [{"type": "text", "text": "x"}], {"messages": 1}, {"1": 5}, [-5], [1 << 40],
]  # fmt: skip


def test_no_body_makes_an_internal_error(server: Server) -> None:
    random = Random(7)
    statuses: Counter[int] = Counter()
    with httpx.Client(timeout=30) as client:
        for _ in range(150):
            schema, path = random.choice(
                [(ChatBody, "chat/completions"), (CompletionBody, "completions")]
            )
            body: dict[str, Any] = {"model": "tiny", "max_tokens": 2}
            body |= {"messages": ASK} if schema is ChatBody else {"prompt": "a"}
            for name in random.sample(sorted(schema.model_fields), random.randint(1, 2)):
                body[name] = random.choice(STRANGE)
            content = json.dumps(body).encode()
            response = client.post(f"{server.url}/v1/{path}", content=content)
            statuses[response.status_code] += 1
            assert response.status_code in (200, 400, 404), (body, response.text)
    assert statuses[200]
    assert statuses[400]


def test_an_adapter_that_does_not_load_is_told_in_its_status(server: Server) -> None:
    from quickmatch.store.documents import Deployment, Model, ModelKind
    from tests.e2e.conftest import wait_until

    before = server.deployment().adapters
    bad = Model(
        id="broken",
        created_at=1.0,
        model_kind=ModelKind.ADAPTER,
        path=str(server.folder / "nothing-here"),
        base_model="tiny",
    )
    server.store.put(bad)

    def want(document: Deployment) -> None:
        document.adapters = {**before, "broken": 1}

    server.store.update(Deployment, "tiny", want)

    def state() -> str:
        status = server.deployment().adapter_status.get("broken")
        return status.state if status is not None else ""

    wait_until(lambda: state() == "FAILED", "a FAILED adapter", timeout_s=10)
    assert "adapter_config.json" in server.deployment().adapter_status["broken"].error
    server.want_adapters(before)
    server.store.delete(Model, "broken")
