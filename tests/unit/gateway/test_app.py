"""The OpenAI API as a client meets it, over a fake backend."""

import json
from typing import Any

import pytest

from quickmatch.core.errors import Overloaded, Unavailable
from quickmatch.store.documents import Trace
from tests.unit.gateway.conftest import Served

ANSWER = "tiny@1 says: hello"


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in text.split("\n\n") if line)
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_chat_answers_as_openai_does(served: Served) -> None:
    response = await served.chat()
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "tiny"
    assert body["choices"] == [
        {
            "index": 0,
            "logprobs": None,
            "message": {"role": "assistant", "content": ANSWER, "refusal": None},
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    assert response.headers["x-quickmatch-model-version"] == "tiny@1"


async def test_stream_has_role_then_text_then_end_then_usage(served: Served) -> None:
    response = await served.chat(stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(response.text)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == ANSWER
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + [
        "stop"
    ]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert all(c["usage"] is None for c in chunks)
    assert {c["id"] for c in [*chunks, usage]} == {usage["id"]}


async def test_stream_without_usage_says_nothing_of_it(served: Served) -> None:
    *chunks, done = events((await served.chat(stream=True)).text)
    assert done == "[DONE]"
    assert all("usage" not in c and c["choices"] for c in chunks)


async def test_completions_number_choices_prompt_by_prompt(served: Served) -> None:
    response = await served.client.post(
        "/v1/completions", json={"model": "tiny", "prompt": ["a", "b"], "n": 2, "logprobs": 1}
    )
    body = response.json()
    assert body["object"] == "text_completion"
    found = {c["index"]: c["text"] for c in body["choices"]}
    assert found == {i: f"tiny@1 says: {'ab'[i // 2]}" for i in range(4)}
    assert body["usage"]["completion_tokens"] == 12
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["tiny@1", " says:", " a"]
    assert logprobs["text_offset"] == [0, 6, 12]
    assert logprobs["top_logprobs"][0] == {"t0": -1.0}


async def test_streamed_completion_carries_text_and_offsets(served: Served) -> None:
    body = {"model": "tiny", "prompt": "a", "stream": True, "logprobs": 0}
    response = await served.client.post("/v1/completions", json=body)
    *chunks, _ = events(response.text)
    assert "".join(c["choices"][0]["text"] for c in chunks) == "tiny@1 says: a"
    assert [c["choices"][0]["logprobs"]["text_offset"] for c in chunks[:-1]] == [[0], [6], [12]]


async def test_chat_logprobs(served: Served) -> None:
    body = (await served.chat(logprobs=True, top_logprobs=2)).json()
    first = body["choices"][0]["logprobs"]["content"][0]
    assert first["token"] == "tiny@1"
    assert first["bytes"] == list(b"tiny@1")
    assert [t["token"] for t in first["top_logprobs"]] == ["t0", "t1"]


async def test_a_prediction_is_counted_whole_and_streamed_but_not_on_a_hit(served: Served) -> None:
    def counts(usage: dict[str, Any]) -> list[int]:
        return list(usage["completion_tokens_details"].values())

    prediction = {"type": "content", "content": "tiny@1 says: jello"}
    fresh = {"prediction": prediction, "headers": {"cache-control": "no-store"}}
    whole = await served.chat(**fresh)
    streamed = await served.chat(**fresh, stream=True, stream_options={"include_usage": True})
    assert counts(whole.json()["usage"]) == counts(events(streamed.text)[-2]["usage"]) == [2, 1]
    assert whole.json()["choices"][0]["message"]["content"] == ANSWER

    await served.chat(prediction=prediction)
    hit = await served.chat()  # another prediction, or none: the same answer, so the same entry
    assert hit.headers["x-quickmatch-cache"] == "hit"
    assert counts(hit.json()["usage"]) == [0, 0]


async def test_a_misshapen_prediction_is_refused_by_name(served: Served) -> None:
    response = await served.chat(prediction={"type": "contents", "content": "x"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prediction"


async def test_second_call_is_a_hit_also_as_a_stream(served: Served) -> None:
    first = await served.chat()
    second = await served.chat()
    streamed = await served.chat(stream=True, stream_options={"include_usage": True})
    assert first.headers["x-quickmatch-cache"] == "miss"
    assert second.headers["x-quickmatch-cache"] == "hit"
    assert streamed.headers["x-quickmatch-cache"] == "hit"
    assert len(served.backend.calls) == 1
    assert second.json()["choices"] == first.json()["choices"]
    assert second.json()["usage"] == first.json()["usage"]
    assert second.json()["id"] != first.json()["id"]
    chunks = events(streamed.text)
    assert chunks[-2]["usage"] == first.json()["usage"]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-2])
    assert text == ANSWER


@pytest.mark.parametrize(
    ("fields", "word", "num_calls"),
    [
        ({"temperature": 1}, "bypass", 2),
        ({"temperature": 1, "seed": 3}, "hit", 1),
        ({"temperature": 1, "top_k": 1}, "hit", 1),
        ({"temperature": 1, "cache_nondeterministic": True}, "hit", 1),
        ({"headers": {"Cache-Control": "no-store"}}, "bypass", 2),
        ({"headers": {"Cache-Control": "no-cache"}}, "miss", 2),
        ({"user": "someone", "metadata": {"app": "x"}}, "hit", 1),
    ],
)
async def test_what_is_cached(
    served: Served, fields: dict[str, Any], word: str, num_calls: int
) -> None:
    await served.chat(**dict(fields))
    response = await served.chat(**dict(fields))
    assert response.headers["x-quickmatch-cache"] == word
    assert len(served.backend.calls) == num_calls


async def test_no_store_does_not_write_and_no_cache_does(served: Served) -> None:
    await served.chat(headers={"Cache-Control": "no-store"})
    assert (await served.chat()).headers["x-quickmatch-cache"] == "miss"
    await served.chat("other", headers={"Cache-Control": "no-cache"})
    assert (await served.chat("other")).headers["x-quickmatch-cache"] == "hit"


async def test_errors_are_not_cached(served: Served) -> None:
    served.backend.error = Unavailable("down")
    assert (await served.chat()).status_code == 503
    served.backend.error = None
    assert (await served.chat()).headers["x-quickmatch-cache"] == "miss"


async def test_an_answer_broken_off_in_a_stream_is_not_cached(served: Served) -> None:
    served.backend.error, served.backend.error_after = Unavailable("it died"), 1
    response = await served.chat(stream=True)
    assert response.status_code == 200
    *_, last = events(response.text)
    assert last["error"]["message"] == "it died"
    assert last["error"]["code"] == "engine_unavailable"
    served.backend.error = None
    assert (await served.chat()).headers["x-quickmatch-cache"] == "miss"


async def test_a_whole_answer_is_begun_anew_when_the_engine_dies_amid_it(served: Served) -> None:
    served.backend.error, served.backend.error_after = Unavailable("it died"), 1
    served.backend.num_errors = 1
    response = await served.chat()
    assert response.json()["choices"][0]["message"]["content"] == ANSWER
    assert len(served.backend.calls) == 2
    served.backend.num_errors = 2
    assert (await served.chat("again")).status_code == 503
    assert len(served.backend.calls) == 4


async def test_an_error_before_the_first_piece_has_its_status(served: Served) -> None:
    served.backend.error = Overloaded("the queue is full", retry_after_s=7)
    response = await served.chat(stream=True)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "7"
    assert response.json()["error"]["type"] == "rate_limit_error"


async def test_a_slow_answer_times_out(served: Served) -> None:
    served.backend.delay_s = 1.5
    response = await served.chat()
    assert response.status_code == 504
    assert served.backend.num_open == 0


async def test_an_unexpected_error_tells_nothing_of_the_inside(served: Served) -> None:
    served.backend.error = ZeroDivisionError("secret")  # type: ignore[assignment]
    response = await served.chat()
    assert response.status_code == 500
    assert "secret" not in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_trace_is_recorded_on_request_only(served: Served, stream: bool) -> None:
    await served.chat("quiet")
    response = await served.chat(
        stream=stream,
        metadata={"app": "cards"},
        headers={"x-quickmatch-trace": "1", "x-quickmatch-tags": "team=a, run=7"},
    )
    assert served.traces.flush()
    (trace,) = served.store.find(Trace)
    assert trace.id == response.headers["x-quickmatch-trace-id"]
    assert trace.request["messages"] == [{"role": "user", "content": "hello"}]
    assert trace.response is not None
    assert trace.response["choices"][0]["message"]["content"] == ANSWER
    assert trace.tags == {"app": "cards", "team": "a", "run": "7"}
    assert (trace.model_version, trace.deployment, trace.cache) == ("tiny@1", "tiny", "miss")
    assert trace.usage["completion_tokens"] == 3
    assert trace.timings.queue_ms == 1.0
    assert trace.timings.ttft_ms is not None
    assert trace.stream is stream


async def test_a_failed_call_is_traced_with_its_error(served: Served) -> None:
    served.backend.error = Unavailable("down")
    await served.chat(store=True)
    assert served.traces.flush()
    (trace,) = served.store.find(Trace)
    assert (trace.status, trace.error, trace.response) == (503, "down", None)


async def test_models_health_and_metrics(served: Served) -> None:
    await served.chat()
    await served.chat()
    listed = (await served.client.get("/v1/models")).json()
    assert [m["id"] for m in listed["data"]] == ["tiny"]
    assert (await served.client.get("/v1/models/tiny")).json()["version_id"] == "tiny@1"
    assert (await served.client.get("/v1/models/none")).status_code == 404
    health = await served.client.get("/health")
    assert health.json() == {"status": "ok", "deployments": {"tiny": "READY"}}
    text = (await served.client.get("/metrics")).text
    assert 'quickmatch_requests_total{model="tiny",status="200"} 2.0' in text
    assert 'quickmatch_exact_cache_hits_total{model="tiny"} 1.0' in text
    assert 'quickmatch_completion_tokens_total{model="tiny"} 3.0' in text
    served.app.state.gateway.begin_shutdown()
    assert (await served.client.get("/health")).status_code == 503


async def test_paths_and_methods_that_are_not_there(served: Served) -> None:
    response = await served.client.get("/v1/nothing")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    response = await served.client.get("/v1/chat/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
