"""OpenAI's wire format from the caller's side: a Call as a request body, events as deltas.

Owns the two conversions that the remote backend needs; knows no connections and no retries.
Invariant: for whatever the provider sends, the items end each choice once and end with one Usage.
"""

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import msgspec

from quickmatch.core.call import Call
from quickmatch.core.completion import Delta, FinishReason, TokenLogprob, Usage
from quickmatch.core.errors import InvalidRequest, UpstreamError
from quickmatch.core.grammar import ANY_OBJECT, Grammar
from quickmatch.core.sampling import SamplingParams

_DEFAULTS = SamplingParams()
# Sent only where they differ from the default: OpenAI itself refuses the ones it does not know,
# and then its answer says so, while vLLM and Quickmatch servers take them.
_FIELDS = (
    *("top_p", "frequency_penalty", "presence_penalty", "seed", "max_tokens"),
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos"),
)


def request_body(call: Call, model: str) -> dict[str, Any]:
    """Return the JSON body to send. Raises InvalidRequest for what cannot be carried."""
    if call.tools:
        raise InvalidRequest("tools cannot be used with a remote model yet", param="tools")
    sampling = call.sampling
    body: dict[str, Any] = {
        "model": model,
        "temperature": sampling.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for name in _FIELDS:
        value = getattr(sampling, name)
        if value != getattr(_DEFAULTS, name):
            body[name] = value
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.grammar is not None:
        body |= _structured(sampling.grammar)
    if call.n != 1:
        body["n"] = call.n
    if call.endpoint == "chat":
        body["messages"] = list(call.messages)
        if call.prediction:
            body["prediction"] = {"type": "content", "content": call.prediction}
        if sampling.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    else:
        body["prompt"] = call.prompt if isinstance(call.prompt, str) else list(call.prompt)
        body |= {"echo": True} if call.echo else {}
        body |= {"logprobs": sampling.logprobs} if sampling.logprobs is not None else {}
    return body


def _structured(grammar: Grammar) -> dict[str, Any]:
    """Return the fields that ask for an output's form: OpenAI's, or vLLM's for what it lacks."""
    if grammar == ANY_OBJECT:
        return {"response_format": {"type": "json_object"}}
    if grammar.kind == "json_schema":
        schema = {"name": "output", "schema": _parse_schema(grammar.text), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    value = _parse_schema(grammar.text) if grammar.kind == "choice" else grammar.text
    return {"structured_outputs": {grammar.kind: value}}


def _parse_schema(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f"the JSON schema is not JSON: {error}", param="response_format"
        ) from error


async def read_events(response: httpx.Response, call: Call) -> AsyncGenerator[Delta | Usage, None]:
    """Yield what a text/event-stream carries."""
    usage = Usage()
    is_open = set(range(call.n))
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            break
        chunk = _parse(data.encode())
        if isinstance(chunk.get("usage"), dict):
            usage = _usage(chunk["usage"])
        for choice in chunk.get("choices") or ():
            delta = _delta(choice, call)
            if delta.finish_reason is not None:
                is_open.discard(delta.index)
            yield delta
    if is_open:
        raise UpstreamError(f"{response.url}: the stream ended before the answer was complete")
    yield usage


def whole_to_items(data: bytes, call: Call) -> Iterator[Delta | Usage]:
    """Yield the items of an answer that came as one JSON object."""
    answer = _parse(data)
    for choice in answer.get("choices") or ():
        yield _delta(choice, call, is_whole=True)
    yield _usage(answer.get("usage") or {})


def _parse(data: bytes) -> dict[str, Any]:
    try:
        parsed = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise UpstreamError(f"the provider sent something that is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise UpstreamError(f"the provider sent {type(parsed).__name__}, not a JSON object")
    if "error" in parsed and not parsed.get("choices"):
        told = parsed["error"]
        text = told.get("message", told) if isinstance(told, dict) else told
        raise UpstreamError(f"the provider failed in the middle of its answer: {text}")
    return parsed


def _delta(choice: dict[str, Any], call: Call, *, is_whole: bool = False) -> Delta:
    body = choice
    if call.endpoint == "chat":
        body = choice.get("message" if is_whole else "delta") or {}
    text = body.get("content" if call.endpoint == "chat" else "text") or ""
    reason = choice.get("finish_reason")
    if is_whole and reason is None:
        reason = "stop"
    return Delta(
        index=choice.get("index", 0),
        text=text,
        logprobs=tuple(_logprobs(choice.get("logprobs"), call)),
        finish_reason=_finish_reason(reason),
    )


def _finish_reason(reason: str | None) -> FinishReason | None:
    if reason is None:
        return None
    try:
        return FinishReason(reason)
    except ValueError:  # a provider's own word
        return FinishReason.STOP


def _logprobs(logprobs: dict[str, Any] | None, call: Call) -> Iterator[TokenLogprob]:
    # Providers send no token ids; -1 stands for "not known".
    if not logprobs:
        return
    if call.endpoint == "chat":
        for entry in logprobs.get("content") or ():
            top = tuple((-1, t["token"], t["logprob"]) for t in entry.get("top_logprobs") or ())
            yield TokenLogprob(-1, entry["token"], entry["logprob"], top)
        return
    tops = logprobs.get("top_logprobs") or []
    values = logprobs.get("token_logprobs") or []
    for i, token in enumerate(logprobs.get("tokens") or ()):
        likely = tops[i] if i < len(tops) and tops[i] else {}
        value = values[i] if i < len(values) and values[i] is not None else 0.0
        yield TokenLogprob(-1, token, value, tuple((-1, t, v) for t, v in likely.items()))


def _usage(usage: dict[str, Any]) -> Usage:
    prompt_details = usage.get("prompt_tokens_details") or {}
    details = usage.get("completion_tokens_details") or {}
    return Usage(
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        cached_tokens=prompt_details.get("cached_tokens") or 0,
        accepted_prediction_tokens=details.get("accepted_prediction_tokens") or 0,
        rejected_prediction_tokens=details.get("rejected_prediction_tokens") or 0,
    )
