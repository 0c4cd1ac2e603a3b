"""A provider behind our URL: what is sent, what comes back, what is tried again."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from quickmatch.core.call import Call
from quickmatch.core.completion import Delta, FinishReason, Usage
from quickmatch.core.errors import (
    ConfigError,
    InvalidRequest,
    Overloaded,
    QuickmatchError,
    UpstreamError,
)
from quickmatch.core.grammar import ANY_OBJECT, Grammar
from quickmatch.core.sampling import SamplingParams
from quickmatch.fleet.backend import Target
from quickmatch.fleet.openai_wire import request_body
from quickmatch.fleet.remote import RemoteBackend, RemoteSettings
from quickmatch.store.documents import Model, ModelKind

SETTINGS = RemoteSettings(url="http://up/v1", model="big", backoff_s=0.001)
CALL = Call(id="c", endpoint="chat", model="m", messages=({"role": "user", "content": "hi"},))
Answer = Callable[[httpx.Request], httpx.Response]


def sse(*chunks: Any) -> bytes:
    lines = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def chunk(text: str = "", finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
WHOLE_STREAM = sse(chunk("he"), chunk("llo", "stop"), USAGE, "[DONE]")


def stream_of(data: bytes) -> httpx.Response:
    return httpx.Response(200, content=data, headers={"content-type": "text/event-stream"})


class Provider:
    """Answers requests from a list, the last answer again and again; keeps what was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.requests[-1].content)
        return found


async def ask(
    provider: Answer, call: Call = CALL, settings: RemoteSettings = SETTINGS
) -> list[Delta | Usage]:
    backend = RemoteBackend(settings, transport=httpx.MockTransport(provider))
    await backend.start()
    try:
        return [item async for item in backend.stream(call, Target("m@1", None))]
    finally:
        await backend.close()


async def test_a_stream_becomes_deltas_and_usage() -> None:
    provider = Provider(stream_of(WHOLE_STREAM))
    *deltas, usage = await ask(provider)
    assert deltas == [Delta(0, "he"), Delta(0, "llo", finish_reason=FinishReason.STOP)]
    assert usage == Usage(3, 2, 0)
    assert provider.body() == {
        "model": "big",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_whole_answer_is_read_too() -> None:
    answer = {
        "choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"accepted_prediction_tokens": 2},
        },
    }
    items = await ask(Provider(httpx.Response(200, json=answer)))
    assert items == [Delta(0, "hello", finish_reason=FinishReason.LENGTH), Usage(3, 2, 1, 2, 0)]


async def test_sampling_is_passed_on_where_it_was_asked_for() -> None:
    sampling = SamplingParams(
        temperature=0.2, top_p=0.9, seed=4, max_tokens=9, stop=("x",), logit_bias={5: 1.0},
        logprobs=2, top_k=3,
    )  # fmt: skip
    provider = Provider(stream_of(sse(chunk("a", "stop"), chunk("b", "stop", 1), USAGE, "[DONE]")))
    await ask(provider, replace(CALL, sampling=sampling, n=2))
    body = provider.body()
    expected = {"temperature": 0.2, "top_p": 0.9, "seed": 4, "max_tokens": 9, "stop": ["x"],
                "logit_bias": {"5": 1.0}, "logprobs": True, "top_logprobs": 2, "top_k": 3,
                "n": 2}  # fmt: skip
    assert {name: body[name] for name in expected} == expected
    assert "min_p" not in body


async def test_a_prediction_is_passed_on_as_it_is() -> None:
    provider = Provider(stream_of(WHOLE_STREAM))
    await ask(provider, replace(CALL, prediction="hello"))
    assert provider.body()["prediction"] == {"type": "content", "content": "hello"}


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        (ANY_OBJECT, {"response_format": {"type": "json_object"}}),
        (
            Grammar("json_schema", '{"enum": [1]}'),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "output", "schema": {"enum": [1]}, "strict": True},
                }
            },
        ),
        (Grammar("regex", "a+"), {"structured_outputs": {"regex": "a+"}}),
        (Grammar("choice", '["a"]'), {"structured_outputs": {"choice": ["a"]}}),
        (Grammar("grammar", "start: /a/"), {"structured_outputs": {"grammar": "start: /a/"}}),
    ],
)
def test_an_outputs_form_is_passed_on(grammar: Grammar, expected: dict[str, Any]) -> None:
    call = Call(id="c", endpoint="chat", model="m", sampling=SamplingParams(grammar=grammar))
    body = request_body(call, "m")
    assert {k: body[k] for k in ("response_format", "structured_outputs") if k in body} == expected


def test_a_schema_that_is_no_json_is_refused_before_it_is_sent() -> None:
    sampling = SamplingParams(grammar=Grammar("json_schema", "{"))
    with pytest.raises(InvalidRequest, match="not JSON"):
        request_body(Call(id="c", endpoint="chat", model="m", sampling=sampling), "m")


async def test_completions_and_logprobs() -> None:
    logprobs = {
        "tokens": ["a"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"a": -0.5, "b": -1.0}],
    }
    choice = {"index": 0, "text": "a", "logprobs": logprobs, "finish_reason": "stop"}
    provider = Provider(stream_of(sse({"choices": [choice]}, "[DONE]")))
    call = replace(CALL, endpoint="completion", prompt=(1, 2))
    delta, usage = await ask(provider, call)
    assert provider.requests[0].url.path == "/v1/completions"
    assert provider.body()["prompt"] == [1, 2]
    assert isinstance(delta, Delta)
    assert delta.logprobs[0].top == ((-1, "a", -0.5), (-1, "b", -1.0))
    assert usage == Usage()


@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(429, json={"error": {"message": "slow"}}, headers={"retry-after": "0.01"}),
        httpx.Response(500, text="oops"),
        httpx.Response(503),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("late"),
    ],
    ids=["429", "500", "503", "refused", "timeout"],
)
async def test_what_may_pass_is_tried_again(failure: httpx.Response | Exception) -> None:
    provider = Provider(failure, failure, stream_of(WHOLE_STREAM))
    assert len(await ask(provider)) == 3
    assert len(provider.requests) == 3


@pytest.mark.parametrize(
    ("answer", "kind", "words", "num_tries"),
    [
        (httpx.Response(400, json={"error": {"message": "bad"}}), InvalidRequest, "bad", 1),
        (httpx.Response(401, json={"error": "who"}), UpstreamError, "refused the key", 1),
        (httpx.Response(404, text="no such model"), InvalidRequest, "no such model", 1),
        (httpx.Response(302), UpstreamError, "302", 1),
        (httpx.Response(429, headers={"retry-after": "0"}), Overloaded, "429", 4),
        (httpx.Response(502, text="bad gateway"), UpstreamError, "bad gateway", 4),
        (httpx.ConnectError("refused"), UpstreamError, "refused", 4),
        (stream_of(sse(chunk("he"))), UpstreamError, "before the answer was complete", 1),
        (stream_of(sse("{nonsense")), UpstreamError, "not JSON", 1),
        (stream_of(sse({"error": {"message": "died"}})), UpstreamError, "died", 1),
    ],
)
async def test_what_fails_is_told_in_the_providers_words(
    answer: httpx.Response | Exception, kind: type[QuickmatchError], words: str, num_tries: int
) -> None:
    provider = Provider(answer)
    with pytest.raises(kind, match=words) as raised:
        await ask(provider)
    assert len(provider.requests) == num_tries
    if kind is not InvalidRequest or "no such" in words:
        assert "http://up/v1" in raised.value.message or "provider" in raised.value.message


async def test_nothing_is_tried_again_once_something_was_passed_on() -> None:
    class Breaking(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            yield sse(chunk("he"))
            raise httpx.ReadError("gone")

    provider = Provider(
        httpx.Response(200, stream=Breaking(), headers={"content-type": "text/event-stream"})
    )
    with pytest.raises(UpstreamError, match="gone"):
        await ask(provider)
    assert len(provider.requests) == 1


async def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, api_key_env="SOME_KEY")
    with pytest.raises(ConfigError, match="SOME_KEY"):
        await ask(Provider(), settings=settings)
    monkeypatch.setenv("SOME_KEY", "secret")
    provider = Provider(stream_of(WHOLE_STREAM))
    await ask(provider, settings=settings)
    assert provider.requests[0].headers["authorization"] == "Bearer secret"


async def test_tools_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="tools"):
        await ask(Provider(), replace(CALL, tools=({"type": "function"},)))


def test_a_models_document_becomes_settings() -> None:
    model = Model(
        id="teacher", created_at=0.0, model_kind=ModelKind.REMOTE, remote_url="http://up/v1/"
    )
    assert RemoteSettings.of(model) == RemoteSettings(url="http://up/v1", model="teacher")
    model.remote_url = "up"
    with pytest.raises(ConfigError, match="'up'"):
        RemoteSettings.of(model)


async def test_a_provider_takes_no_heads_and_remembers_nothing() -> None:
    backend = RemoteBackend(SETTINGS)
    with pytest.raises(ConfigError, match="draft 'head@1' cannot be loaded on a remote model"):
        await backend.load_draft("head@1", "/head", "")
    with pytest.raises(ConfigError, match="no head of ours"):
        await backend.unload_draft("")
    assert backend.max_remembered_tokens == 0
