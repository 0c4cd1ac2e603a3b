"""A caller who hangs up ends the work that runs for them."""

import asyncio
from typing import Any

import pytest

from quickmatch.gateway.connection import read_body, while_connected
from quickmatch.gateway.errors import BodyTooLarge, ClientGone


class Caller:
    """Gives out ASGI messages; then stays silent until it hangs up."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if self.messages:
            return self.messages.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}


def piece(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_in_pieces_is_read_whole() -> None:
    caller = Caller(piece(b"a", more=True), piece(b"b", more=True), piece(b"c"))
    assert await read_body(caller.receive, 3) == b"abc"


async def test_a_body_is_bounded_while_it_comes() -> None:
    caller = Caller(piece(b"aa", more=True), piece(b"bb", more=True))
    with pytest.raises(BodyTooLarge, match="3 bytes"):
        await read_body(caller.receive, 3)


async def test_a_body_that_breaks_off() -> None:
    caller = Caller(piece(b"a", more=True))
    caller.gone.set()
    with pytest.raises(ClientGone):
        await read_body(caller.receive, 3)


async def test_work_ends_with_its_caller() -> None:
    caller, ended = Caller(), []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            ended.append("cancelled")

    serving = asyncio.create_task(while_connected(caller.receive, work()))
    await asyncio.sleep(0.01)
    caller.gone.set()
    with pytest.raises(ClientGone):
        await serving
    assert ended == ["cancelled"]


async def test_work_that_ends_first_gives_its_error() -> None:
    async def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await while_connected(Caller().receive, work())
    assert len(asyncio.all_tasks()) == 1


async def test_cancelling_the_server_cancels_the_work() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            ended.append(True)

    serving = asyncio.create_task(while_connected(Caller().receive, work()))
    await asyncio.sleep(0.01)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert ended == [True]
