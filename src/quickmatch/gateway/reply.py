"""Sending an answer: as a stream of server-sent events, or whole.

Owns the ASGI messages. Invariant: the status line is sent with the first piece of the answer and
not before, so that an error that comes first still has its own status; an error that comes later
is sent as an event in OpenAI's form, and then the stream ends.
"""

from typing import Protocol

import msgspec
from starlette.types import Send

from quickmatch.core.completion import Completion, Delta
from quickmatch.core.errors import QuickmatchError
from quickmatch.gateway.errors import error_body
from quickmatch.gateway.render import Renderer

Headers = dict[str, str]


class Reply(Protocol):
    """One answer on its way to the caller."""

    has_started: bool

    async def add(self, delta: Delta) -> None:
        """Send, or keep, a piece."""

    async def end(self, completion: Completion) -> None:
        """Send the rest."""

    async def fail(self, error: QuickmatchError) -> None:
        """Tell of an error after the start, and end."""


class StreamReply:
    """text/event-stream, as OpenAI's clients read it."""

    def __init__(
        self, send: Send, renderer: Renderer, headers: Headers, *, include_usage: bool
    ) -> None:
        self.has_started = False
        self._send = send
        self._renderer = renderer
        self._headers = headers
        self._include_usage = include_usage

    async def add(self, delta: Delta) -> None:
        """Send the delta's events in one write."""
        await self._write(b"".join(self._renderer.chunks(delta)))

    async def end(self, completion: Completion) -> None:
        """Send the usage if it was asked for, and [DONE]."""
        usage = self._renderer.usage_chunk(completion.usage) if self._include_usage else b""
        await self._write(usage + b"data: [DONE]\n\n", is_last=True)

    async def fail(self, error: QuickmatchError) -> None:
        """Send an error event."""
        event = b"data: " + msgspec.json.encode(error_body(error)) + b"\n\n"
        await self._write(event, is_last=True)

    async def _write(self, data: bytes, *, is_last: bool = False) -> None:
        if not self.has_started:
            self.has_started = True
            headers = {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",  # nginx would hold the events back
                **self._headers,
            }
            await self._send(_start(200, headers))
        if data or is_last:
            await self._send(_body(data, more=not is_last))


class WholeReply:
    """One JSON object."""

    def __init__(self, send: Send, renderer: Renderer, headers: Headers) -> None:
        self.has_started = False
        self._send = send
        self._renderer = renderer
        self._headers = headers

    async def add(self, delta: Delta) -> None:
        """Nothing goes out before the end."""

    async def end(self, completion: Completion) -> None:
        """Send the whole answer."""
        data = msgspec.json.encode(self._renderer.whole(completion))
        headers = {
            "content-type": "application/json",
            "content-length": str(len(data)),
            **self._headers,
        }
        self.has_started = True
        await self._send(_start(200, headers))
        await self._send(_body(data, more=False))

    async def fail(self, error: QuickmatchError) -> None:
        """Raise: `end` sends everything at once, so there is no "after the start"."""
        raise error


def _start(status: int, headers: Headers) -> dict[str, object]:
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}


def _body(data: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}
