"""From a request's bytes and headers to calls: everything that is checked before routing.

Owns the meaning of each body field and of the request headers. Does not know what is served: the
model's name is passed on as it was spelled. Invariant: what comes out needs no further checks
but those that depend on the model (its context length, its template).

Headers: `Cache-Control: no-store` neither reads nor writes the exact cache, `no-cache` only
writes; `x-quickmatch-trace: 1` records the call, `0` forbids it; `x-quickmatch-tags: k=v,k2=v2`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from quickmatch.core.call import MAX_CHOICES, Call, Endpoint, Message
from quickmatch.core.errors import InvalidRequest
from quickmatch.core.ids import new_id
from quickmatch.core.sampling import SamplingParams
from quickmatch.gateway.auth import Caller
from quickmatch.gateway.errors import explain_invalid
from quickmatch.gateway.schema import ChatBody, CommonBody, CompletionBody, MessageBody
from quickmatch.gateway.structured import grammar_of

MAX_PROMPTS = 256
COMPLETION_MAX_TOKENS = 16  # OpenAI's default on /v1/completions; chat goes up to the context
# Sampling fields that mean the same in a body and in SamplingParams.
_PLAIN_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty"),
    *("repetition_penalty", "seed", "min_tokens", "ignore_eos"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """What the exact cache may do for a request."""

    read: bool = True
    write: bool = True
    nondeterministic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """One HTTP request: one call a prompt, and how the answer is wanted."""

    id: str
    endpoint: Endpoint
    model: str
    calls: tuple[Call, ...]
    raw: bytes  # the body as it came, for the trace
    stream: bool = False
    include_usage: bool = False
    cache: CachePolicy = field(default_factory=CachePolicy)
    trace: bool | None = None  # None: as the deployment says
    trace_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    tenant: str = "default"

    @property
    def n(self) -> int:
        """Choices a call."""
        return self.calls[0].n


def parse(endpoint: Endpoint, raw: bytes, headers: Mapping[str, str], caller: Caller) -> ApiRequest:
    """Read a body. Raises InvalidRequest with the field and the remedy."""
    schema: type[ChatBody | CompletionBody] = ChatBody if endpoint == "chat" else CompletionBody
    try:
        body = schema.model_validate_json(raw)
    except ValidationError as error:
        raise explain_invalid(error, schema) from error
    _refuse(body)
    request_id = new_id("chatcmpl" if endpoint == "chat" else "cmpl")
    trace_id = new_id("trace")
    common: dict[str, Any] = {
        "endpoint": endpoint,
        "model": body.model,
        "sampling": _sampling(body),
        "n": _num_choices(body),
        "tenant": caller.tenant,
        "isolation_key": body.prompt_cache_isolation_key or "",
        "trace_id": trace_id,
    }
    if isinstance(body, ChatBody):
        calls: tuple[Call, ...] = (Call(id=request_id, **common, **_chat_fields(body)),)
    else:
        calls = tuple(
            Call(id=f"{request_id}-{i}", prompt=prompt, echo=bool(body.echo), **common)
            for i, prompt in enumerate(_prompts(body))
        )
    return ApiRequest(
        id=request_id,
        endpoint=endpoint,
        model=body.model,
        calls=calls,
        raw=raw,
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        cache=_cache_policy(headers, body),
        trace=_trace_wish(headers, body),
        trace_id=trace_id,
        tags={**(body.metadata or {}), **_tags(headers)},
        tenant=caller.tenant,
    )


def _refuse(body: CommonBody) -> None:
    for name, remedy in body.refused.items():
        if getattr(body, name) is not None:
            raise InvalidRequest(f"{name} is not supported; {remedy}", param=name)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "stream_options is only allowed with stream: true", param="stream_options"
        )


def _num_choices(body: CommonBody) -> int:
    n = 1 if body.n is None else body.n
    if not 1 <= n <= MAX_CHOICES:
        raise InvalidRequest(f"n is {n}; allowed: 1 to {MAX_CHOICES}", param="n")
    best_of = getattr(body, "best_of", None)
    if best_of not in (None, n):
        raise InvalidRequest(
            f"best_of is {best_of} and n is {n}; only best_of equal to n is supported",
            param="best_of",
        )
    return n


def _sampling(body: ChatBody | CompletionBody) -> SamplingParams:
    given = {name: value for name in _PLAIN_FIELDS if (value := getattr(body, name)) is not None}
    if body.logit_bias:
        given["logit_bias"] = _logit_bias(body.logit_bias)
    max_tokens, logprobs = body.max_tokens, body.logprobs
    if isinstance(body, ChatBody):
        max_tokens = body.max_completion_tokens or max_tokens
        if body.max_completion_tokens == 0:
            max_tokens = 0  # refused by SamplingParams, with the range
        logprobs = _chat_logprobs(body)
    elif max_tokens is None:
        max_tokens = COMPLETION_MAX_TOKENS
    return SamplingParams(
        **given,
        max_tokens=max_tokens,
        logprobs=logprobs,
        stop=tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        grammar=grammar_of(body),
    )


def _chat_logprobs(body: ChatBody) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _logit_bias(logit_bias: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in logit_bias.items()}
    except ValueError as error:
        raise InvalidRequest(
            f"logit_bias maps token ids to biases; {error}", param="logit_bias"
        ) from error


def _chat_fields(body: ChatBody) -> dict[str, Any]:
    if body.tool_choice not in (None, "auto", "none"):
        raise InvalidRequest(
            f"tool_choice {body.tool_choice!r} is not supported yet; use 'auto' or 'none'",
            param="tool_choice",
        )
    if set(body.modalities or ()) - {"text"}:
        raise InvalidRequest(f"modalities is {body.modalities}; only text", param="modalities")
    return {
        "messages": tuple(_message(i, message) for i, message in enumerate(body.messages)),
        "tools": tuple(body.tools or ()) if body.tool_choice != "none" else (),
        "chat_template_kwargs": body.chat_template_kwargs or {},
        "prediction": body.prediction.content if body.prediction else "",
    }


def _message(number: int, message: MessageBody) -> Message:
    """Return the message as it was sent, without fields that are null."""
    extra = {k: v for k, v in (message.model_extra or {}).items() if v is not None}
    if message.content is None and not extra.get("tool_calls"):
        raise InvalidRequest(f"messages.{number} has no content", param="messages")
    content = "" if message.content is None else message.content
    return {"role": message.role, "content": content, **extra}


def _prompts(body: CompletionBody) -> list[str | tuple[int, ...]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt or len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(
            f"prompt holds {len(prompt)} prompts; allowed: 1 to {MAX_PROMPTS}", param="prompt"
        )
    prompts: list[str | tuple[int, ...]] = []
    if isinstance(prompt[0], int):
        return [tuple(token for token in prompt if isinstance(token, int))]
    for one in prompt:
        prompts.append(tuple(one) if isinstance(one, list) else str(one))
    return prompts


def _cache_policy(headers: Mapping[str, str], body: CommonBody) -> CachePolicy:
    directives = {d.strip().lower() for d in headers.get("cache-control", "").split(",")}
    if "no-store" in directives:
        return CachePolicy(read=False, write=False)
    return CachePolicy(
        read="no-cache" not in directives, nondeterministic=body.cache_nondeterministic
    )


def _trace_wish(headers: Mapping[str, str], body: CommonBody) -> bool | None:
    wish = headers.get("x-quickmatch-trace")
    if wish is None:
        return body.store
    return wish.strip().lower() in ("1", "true", "yes")


def _tags(headers: Mapping[str, str]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for pair in filter(None, headers.get("x-quickmatch-tags", "").split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InvalidRequest(
                f"x-quickmatch-tags holds {pair.strip()!r}; write key=value,key2=value2"
            )
        tags[key.strip()] = value.strip()
    return tags
