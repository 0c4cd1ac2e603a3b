"""Several asynchronous generators as one, in order of arrival.

Used for the n choices of a call and the several prompts of a request. Invariant: when the merged
generator ends, is closed or fails, every source has been closed and no task is left behind.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


class _End:
    """A source is exhausted, or failed with `error`."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


async def merge(
    sources: Sequence[AsyncGenerator[T, None]],
) -> AsyncGenerator[tuple[int, T], None]:
    """Yield (number of the source, item) as items come. The first error ends all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for item in only:
                yield 0, item
        return
    # One slot a source: a slow reader holds the sources back instead of filling memory.
    queue: asyncio.Queue[tuple[int, T | _End]] = asyncio.Queue(maxsize=len(sources))
    pumps = [asyncio.create_task(_pump(i, s, queue)) for i, s in enumerate(sources)]
    try:
        num_open = len(sources)
        while num_open:
            number, entry = await queue.get()
            if isinstance(entry, _End):
                if entry.error is not None:
                    raise entry.error
                num_open -= 1
            else:
                yield number, entry
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    number: int,
    source: AsyncGenerator[T, None],
    queue: "asyncio.Queue[tuple[int, T | _End]]",
) -> None:
    error: Exception | None = None
    try:
        async with aclosing(source):
            async for item in source:
                await queue.put((number, item))
    except Exception as raised:  # carried to the reader, who raises it
        error = raised
    await queue.put((number, _End(error)))
