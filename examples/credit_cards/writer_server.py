"""Serves the scripted writer behind an OpenAI-compatible URL.

With it the writer takes the place of any provider: it is registered in Quickmatch as a remote
model and called through the gateway, so the whole path is the same as with a real teacher.

    python -m examples.credit_cards.writer_server --port 8123

Token counts in `usage` are counts of words, since a grammar has no tokens.
"""

import argparse
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from examples.credit_cards.prompts import PromptError
from examples.credit_cards.writer import DESCRIPTION, NAME, write

Json = dict[str, Any]


class ChatRequest(BaseModel):
    """What is read of a chat request; a grammar has no use for the rest."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[Json] = Field(min_length=1)
    stream: bool = False
    stream_options: Json | None = None
    seed: int | None = None


def create_app(seed: int = 0) -> FastAPI:
    """Return the application. `seed` sets the writer's habits; a request's own seed goes first."""
    app = FastAPI(title=DESCRIPTION)

    @app.get("/v1/models")
    def models() -> Json:
        card = {"id": NAME, "object": "model", "created": 0, "owned_by": DESCRIPTION}
        return {"object": "list", "data": [card]}

    @app.post("/v1/chat/completions")
    def chat(request: ChatRequest) -> Response:
        if request.model != NAME:
            return _error(404, f"no model {request.model!r} here; there is only {NAME!r}")
        try:
            answer = write(request.messages, seed if request.seed is None else request.seed)
        except PromptError as error:
            return _error(400, str(error))
        usage = _usage(request.messages, answer)
        if request.stream:
            wants_usage = bool((request.stream_options or {}).get("include_usage"))
            events = _events(answer, usage if wants_usage else None)
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(_completion(answer, usage))

    return app


def _completion(answer: str, usage: Json) -> Json:
    message = {"role": "assistant", "content": answer}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {**_head("chat.completion"), "choices": [choice], "usage": usage}


def _events(answer: str, usage: Json | None) -> Iterator[str]:
    head = _head("chat.completion.chunk")
    deltas: list[tuple[Json, str | None]] = [({"role": "assistant", "content": ""}, None)]
    words = answer.split(" ")
    deltas += [({"content": w if i == 0 else f" {w}"}, None) for i, w in enumerate(words)]
    for delta, reason in [*deltas, ({}, "stop")]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        yield _event({**head, "choices": [choice]})
    if usage is not None:
        yield _event({**head, "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def _head(kind: str) -> Json:
    name = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": NAME}


def _usage(messages: list[Json], answer: str) -> Json:
    asked = sum(len(str(message.get("content") or "").split()) for message in messages)
    said = len(answer.split())
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _event(body: Json) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _error(status: int, message: str) -> JSONResponse:
    body = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": body}, status_code=status)


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--seed", type=int, default=0, help="sets the writer's habits")
    args = parser.parse_args()
    uvicorn.run(create_app(args.seed), host=args.host, port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
