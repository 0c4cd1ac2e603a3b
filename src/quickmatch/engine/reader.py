"""What is read beside the steps, so that no stream waits for it: heads, adapters, grammars.

Owns one thread, and the order in which things were asked for. To read changes nothing; whoever
asked takes in what was read between two steps, in the loop's own thread.
"""

from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

Take = Callable[[Future[Any]], None]  # asks the future for what was read, or for why not


@dataclass(frozen=True, slots=True)
class Room:
    """Room in memory for something, where there may be too much of its kind."""

    is_free: Callable[[], bool]
    make: Callable[[], None]  # have some come free, before long


@dataclass(frozen=True, slots=True)
class Missing:
    """What a request needs and memory does not have yet."""

    name: Hashable  # requests that need the same thing wait for one reading
    read: Callable[[], Any]  # in any thread; changes nothing
    take: Callable[[Any], None]  # what was read, between two steps
    room: Room | None = None  # None: there always is


class Reader:
    """One engine process's."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._reading: deque[tuple[Future[Any], Take]] = deque()

    @property
    def is_busy(self) -> bool:
        """Whether something is being read, or was and has not been taken in."""
        return bool(self._reading)

    def start(self, read: Callable[[], Any], take: Take) -> None:
        """Read in the thread, after all that was asked for before; `take` comes with `finish`."""
        self._reading.append((self._pool.submit(read), take))

    def finish(self) -> None:
        """Let those who asked take in what has been read."""
        while self._reading and self._reading[0][0].done():
            future, take = self._reading.popleft()
            take(future)
