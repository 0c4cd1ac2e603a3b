"""Turns a recorded call into what the model read and what it said, in token ids.

Owns which calls a head can learn from: those that were answered, chats and completions alike, also
where a length limit cut the answer, because a head foretells tokens and no whole answers. Of a call
with several prompts or choices it is the first. A prompt is made of the request as serving makes
it: messages, tools and `chat_template_kwargs` as they came. Knows no store and loads no torch.
"""

from typing import Any

from quickmatch.core.call import Message
from quickmatch.core.errors import InvalidRequest
from quickmatch.store.documents import Json, Trace
from quickmatch.tuning.draft_rows import Asked, RowEncoder


def asked_of(trace: Trace, encoder: RowEncoder) -> Asked | None:
    """Return the call's prompt and answer, or None if there is nothing to learn in it.

    Traffic is as it comes, so what the template refuses is left out like a call that failed.
    """
    choices = (trace.response or {}).get("choices")
    if trace.status != 200 or trace.error or not choices:
        return None
    is_rewritten = encoder.is_rewritten(trace.model_version)
    try:
        if trace.endpoint == "chat":
            return _chat(trace.request, choices[0], encoder, is_rewritten)
        return _completion(trace.request, choices[0], encoder, is_rewritten)
    except InvalidRequest:
        return None


def _chat(request: Json, choice: Json, encoder: RowEncoder, is_rewritten: bool) -> Asked | None:
    messages = request.get("messages")
    answer = _message(choice.get("message") or {})
    if not messages or not (answer["content"] or answer.get("tool_calls")):
        return None
    return encoder.chat(
        [_message(message) for message in messages],
        None if is_rewritten else answer,
        tools=(request.get("tools") or ()) if request.get("tool_choice") != "none" else (),
        variables=request.get("chat_template_kwargs") or {},
        is_cut=choice.get("finish_reason") == "length",
    )


def _completion(
    request: Json, choice: Json, encoder: RowEncoder, is_rewritten: bool
) -> Asked | None:
    prompt: Any = request.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]  # the first choice is the first prompt's
    text = choice.get("text")
    if not prompt or not text:
        return None
    return encoder.completion(
        prompt, None if is_rewritten else text, has_echo=bool(request.get("echo"))
    )


def _message(message: Message) -> Message:
    """Return a message as it is rendered: without fields that are null."""
    return {"content": "", **{k: v for k, v in message.items() if v is not None}}
