"""The caller's connection: reading a bounded body, and noticing that the caller hung up.

Invariant: while work runs for a caller, somebody listens to the connection; when the caller is
gone the work is cancelled, and with it the generation behind it, streamed or not.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive, Scope

from quickmatch.gateway.errors import BodyTooLarge, ClientGone


def header_map(scope: Scope) -> dict[str, str]:
    """Return the request's headers, names in lower case; of a repeated one the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """Return the whole body. Raises BodyTooLarge as soon as it is, ClientGone if it ends early."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            raise BodyTooLarge(
                f"the request body is larger than {max_bytes} bytes; send a shorter prompt"
            )
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end; if the caller hangs up first, cancel it and raise ClientGone."""
    working = asyncio.create_task(work)
    listening = asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        await working
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
