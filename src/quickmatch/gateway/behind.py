"""Work that a caller need not wait for: short blocking jobs, run in threads, drained at the end.

Invariant: after `drain` everything that was handed in has been tried. A failure is logged and
costs nobody an answer.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import ParamSpec

log = logging.getLogger(__name__)
P = ParamSpec("P")

MAX_WAITING = 2048  # beyond it work is dropped: a store that hangs must not fill the memory


class Behind:
    """A set of jobs under way."""

    def __init__(self) -> None:
        self._jobs: set[asyncio.Task[None]] = set()

    def run(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run a blocking function soon."""
        if len(self._jobs) >= MAX_WAITING:
            log.warning("%d writes are waiting for the store; dropping one", len(self._jobs))
            return

        async def work() -> None:
            try:
                await asyncio.to_thread(function, *args, **kwargs)
            except Exception as error:  # nobody awaits the job: here is its boundary
                log.error("a write failed: %s", error)

        job = asyncio.create_task(work())
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def drain(self) -> None:
        """Wait for everything under way."""
        while self._jobs:
            await asyncio.gather(*self._jobs, return_exceptions=True)
