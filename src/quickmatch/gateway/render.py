"""Answers as OpenAI JSON: whole ones, and the chunks of a stream.

Owns the shapes that OpenAI's clients parse, field for field. Knows no sockets: bytes are made and
sent elsewhere. Invariant: a stream's chunks, put together by a client, give the whole answer.
"""

from typing import Any

import msgspec

from quickmatch.core.completion import Choice, Completion, Delta, TokenLogprob, Usage
from quickmatch.gateway.convert import ApiRequest

Json = dict[str, Any]
_MIN_LOGPROB = -9999.0  # what OpenAI sends for "impossible"; JSON has no infinity


class Renderer:
    """Renders one request's answer; a stream's renderer also keeps where each choice stands."""

    def __init__(self, request: ApiRequest, version_id: str, created_at: float) -> None:
        self._request = request
        self._is_chat = request.endpoint == "chat"
        self._head: Json = {
            "id": request.id,
            "object": "chat.completion" if self._is_chat else "text_completion",
            "created": int(created_at),
            "model": request.model,
            "system_fingerprint": version_id,
        }
        self._chunk_head = dict(self._head)
        if self._is_chat:
            self._chunk_head["object"] = "chat.completion.chunk"
        if request.include_usage:
            self._chunk_head["usage"] = None
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}  # characters sent a choice, for text_offset

    def whole(self, completion: Completion) -> Json:
        """Return the body of an answer that is not streamed (and of every trace)."""
        return {
            **self._head,
            "choices": [self._choice(choice) for choice in completion.choices],
            "usage": usage_json(completion.usage),
        }

    def chunks(self, delta: Delta) -> list[bytes]:
        """Return the events of one delta: the role before a choice's first, the end on its own."""
        events: list[Json] = []
        if self._is_chat and delta.index not in self._begun:
            self._begun.add(delta.index)
            events.append({"delta": {"role": "assistant", "content": "", "refusal": None}})
        if delta.text or delta.logprobs:
            text = {"delta": {"content": delta.text}} if self._is_chat else {"text": delta.text}
            events.append({**text, "logprobs": self._logprobs(delta.logprobs, delta.index)})
        if delta.finish_reason is not None:
            end: Json = {"delta": {}} if self._is_chat else {"text": ""}
            events.append({**end, "finish_reason": delta.finish_reason})
        return [self._event(delta.index, event) for event in events]

    def usage_chunk(self, usage: Usage) -> bytes:
        """Return the event that carries the usage: no choices, last before [DONE]."""
        return _sse({**self._chunk_head, "choices": [], "usage": usage_json(usage)})

    def _event(self, index: int, fields: Json) -> bytes:
        choice = {"index": index, "logprobs": None, "finish_reason": None, **fields}
        return _sse({**self._chunk_head, "choices": [choice]})

    def _choice(self, choice: Choice) -> Json:
        logprobs = None
        if self._request.calls[0].sampling.logprobs is not None:
            self._offsets.pop(choice.index, None)
            logprobs = self._logprobs(choice.logprobs, choice.index)
        body: Json = {"index": choice.index, "logprobs": logprobs}
        if self._is_chat:
            body["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
        else:
            body["text"] = choice.text
        return {**body, "finish_reason": choice.finish_reason}

    def _logprobs(self, logprobs: tuple[TokenLogprob, ...], index: int) -> Json | None:
        if not logprobs:
            return None
        if self._is_chat:
            return {"content": [_chat_logprob(entry) for entry in logprobs], "refusal": None}
        offset = self._offsets.get(index, 0)
        offsets = []
        for entry in logprobs:
            offsets.append(offset)
            offset += len(entry.token)
        self._offsets[index] = offset
        return {
            "tokens": [entry.token for entry in logprobs],
            "token_logprobs": [_finite(entry.logprob) for entry in logprobs],
            "top_logprobs": [
                {token: _finite(value) for _, token, value in entry.top} for entry in logprobs
            ],
            "text_offset": offsets,
        }


def usage_json(usage: Usage) -> Json:
    """Return OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.accepted_prediction_tokens,
            "rejected_prediction_tokens": usage.rejected_prediction_tokens,
        },
    }


def _chat_logprob(entry: TokenLogprob) -> Json:
    return {
        **_chat_token(entry.token, entry.logprob),
        "top_logprobs": [_chat_token(token, value) for _, token, value in entry.top],
    }


def _chat_token(token: str, logprob: float) -> Json:
    as_bytes = list(token.encode("utf-8", "surrogatepass"))
    return {"token": token, "logprob": _finite(logprob), "bytes": as_bytes}


def _finite(logprob: float) -> float:
    return max(logprob, _MIN_LOGPROB)


def _sse(body: Json) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
