"""Turns a recorded call into what it asked and what it was answered.

Owns how a request's body becomes a call again: the parts of it that made the prompt, and whose it
was. The gateway checked the body when it came, so nothing is checked here. Knows no tokens.
"""

from typing import Any

from quickmatch.core.call import Call, Message
from quickmatch.fleet.backend import PastAnswer
from quickmatch.store.documents import Json, Trace


def past_answers(trace: Trace) -> list[PastAnswer]:
    """Return the choices that hold text, each with the call that it answered."""
    num_choices = trace.request.get("n") or 1  # of each prompt
    answers = []
    for number, choice in enumerate((trace.response or {}).get("choices") or ()):
        text = (choice.get("message") or {}).get("content") or choice.get("text")
        if text:
            answers.append(PastAnswer(_call(trace, number // num_choices), text))
    return answers


def _call(trace: Trace, number: int) -> Call:
    """number: which of the request's prompts."""
    request = trace.request
    asked = _chat(request) if trace.endpoint == "chat" else _completion(request, number)
    return Call(
        id=trace.id,
        endpoint=trace.endpoint,
        model=trace.model,
        tenant=trace.tenant,
        isolation_key=request.get("prompt_cache_isolation_key") or "",
        **asked,
    )


def _chat(request: Json) -> dict[str, Any]:
    return {
        "messages": tuple(_message(message) for message in request.get("messages") or ()),
        "tools": tuple(request.get("tools") or ()) if request.get("tool_choice") != "none" else (),
        "chat_template_kwargs": request.get("chat_template_kwargs") or {},
    }


def _message(message: Message) -> Message:
    """Return the message as it is rendered: without fields that are null."""
    return {"content": "", **{name: value for name, value in message.items() if value is not None}}


def _completion(request: Json, number: int) -> dict[str, Any]:
    prompt: Any = request.get("prompt") or ""
    if isinstance(prompt, list) and not isinstance(prompt[0], int):
        prompt = prompt[number]
    return {
        "prompt": prompt if isinstance(prompt, str) else tuple(prompt),
        "echo": bool(request.get("echo")),
    }
