"""Bodies and headers to calls."""

import json
from typing import Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from quickmatch.core.errors import InvalidRequest
from quickmatch.gateway.auth import Caller
from quickmatch.gateway.convert import ApiRequest, CachePolicy, parse
from quickmatch.gateway.schema import ChatBody, CompletionBody

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(headers: dict[str, str] | None = None, **fields: Any) -> ApiRequest:
    return parse("chat", json.dumps({**CHAT, **fields}).encode(), headers or {}, Caller())


def complete(**fields: Any) -> ApiRequest:
    body = {"model": "m", "prompt": "a", **fields}
    return parse("completion", json.dumps(body).encode(), {}, Caller())


def test_every_field_of_the_official_client_is_known() -> None:
    for params, body in ((chat_params, ChatBody), (completion_params, CompletionBody)):
        known = params.CompletionCreateParamsBase.__annotations__
        assert len(known) > 10
        assert known.keys() <= body.model_fields.keys()


def test_defaults_are_openais() -> None:
    (call,) = chat().calls
    assert (call.sampling.temperature, call.sampling.max_tokens, call.n) == (1.0, None, 1)
    assert complete().calls[0].sampling.max_tokens == 16
    assert not chat().stream
    assert chat().trace is None


def test_null_means_default() -> None:
    names = ("temperature", "n", "stop", "seed", "max_tokens", "tools", "logit_bias", "stream")
    request = chat(**dict.fromkeys(names))
    assert request.calls[0].sampling == chat().calls[0].sampling


def test_sampling_fields_arrive() -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "seed": 3,
              "frequency_penalty": 0.1, "presence_penalty": 0.2, "repetition_penalty": 1.1,
              "min_tokens": 2, "ignore_eos": True}  # fmt: skip
    sampling = chat(**fields, stop="x", logit_bias={"5": -1}, stop_token_ids=[7]).calls[0].sampling
    assert {name: getattr(sampling, name) for name in fields} == fields
    assert sampling.stop == ("x",)
    assert sampling.logit_bias == {5: -1.0}
    assert sampling.stop_token_ids == (7,)


def test_max_completion_tokens_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=9).calls[0].sampling.max_tokens == 9
    with pytest.raises(InvalidRequest, match="max_tokens is 0"):
        chat(max_completion_tokens=0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 4}, 4),
        ({"logprobs": False}, None),
    ],
)
def test_logprobs(fields: dict[str, Any], expected: int | None) -> None:
    assert chat(**fields).calls[0].sampling.logprobs == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
    ],
)
def test_prompts(prompt: Any, expected: list[Any]) -> None:
    request = complete(prompt=prompt)
    assert [call.prompt for call in request.calls] == expected
    assert len({call.id for call in request.calls}) == len(expected)


def test_messages_reach_the_template_as_sent_without_nulls() -> None:
    parts = [{"type": "text", "text": "a"}]
    messages = [
        {"role": "system", "content": parts, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "7", "tool_call_id": "1"},
    ]
    found = chat(messages=messages).calls[0].messages
    assert found == (
        {"role": "system", "content": parts},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "7", "tool_call_id": "1"},
    )


def test_tools_and_template_arguments() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert chat(tools=tools).calls[0].tools == tuple(tools)
    assert chat(tools=tools, tool_choice="none").calls[0].tools == ()
    arguments = {"enable_thinking": False}
    assert chat(chat_template_kwargs=arguments).calls[0].chat_template_kwargs == arguments


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("def f():", "def f():"),
        ([{"type": "text", "text": "def "}, {"type": "text", "text": "f():"}], "def f():"),
        ([], ""),
    ],
)
def test_a_prediction_is_one_text(content: Any, expected: str) -> None:
    request = chat(prediction={"type": "content", "content": content}, n=2)
    assert request.calls[0].prediction == expected
    assert chat(prediction=None).calls[0].prediction == ""


@pytest.mark.parametrize(
    ("prediction", "words"),
    [
        ("x", "prediction"),
        ({"type": "text", "content": "x"}, "prediction.type: .*'content'"),
        ({"type": "content"}, "prediction.content is missing"),
        ({"type": "content", "content": 5}, "prediction.content"),
        ({"type": "content", "content": [{"type": "image_url"}]}, "list of {'type': 'text'"),
        ({"type": "content", "content": "x", "size": 1}, "unknown field 'prediction.size'"),
    ],
)
def test_a_misshapen_prediction_is_refused(prediction: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refusal:
        chat(prediction=prediction)
    assert refusal.value.param == "prediction"


@pytest.mark.parametrize(
    ("header", "policy"),
    [
        ("", CachePolicy()),
        ("no-store", CachePolicy(read=False, write=False)),
        ("No-Cache", CachePolicy(read=False)),
        ("max-age=0, no-store", CachePolicy(read=False, write=False)),
    ],
)
def test_cache_control(header: str, policy: CachePolicy) -> None:
    assert chat({"cache-control": header}).cache == policy


def test_tags_and_the_wish_for_a_trace() -> None:
    request = chat({"x-quickmatch-tags": "a=1, b = x y ,", "x-quickmatch-trace": "1"})
    assert (request.tags, request.trace) == ({"a": "1", "b": "x y"}, True)
    assert chat(metadata={"a": "2"}).tags == {"a": "2"}
    assert chat(store=True).trace is True
    assert chat({"x-quickmatch-trace": "0"}, store=True).trace is False
    with pytest.raises(InvalidRequest, match="'nonsense'"):
        chat({"x-quickmatch-tags": "nonsense"})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"functions": []}, "send `tools`"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"messages": [{"content": "x"}]}, "messages.0.role is missing"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"user_id": 1}, "unknown field 'user_id'; did you mean 'user'"),
        ({"qqqqqq": 1}, "unknown field 'qqqqqq'; remove it"),
        ({"model": ""}, "model"),
        ({"n": 129}, "n is 129"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        chat(**fields)
