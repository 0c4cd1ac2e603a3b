"""Requests that something is read for, an adapter or a grammar, before the engine takes them.

Owns who waits for what, and the order in which adapters are brought to memory: as they were asked
for, each once there is room for it. Room comes when the last sequence of another one ends, so a
request waits where more adapters are in use at once than memory holds; it is not refused. Later
requests for what memory has go ahead of it for a second; then room is made: one of the adapters in
memory takes no new requests, which stand in line like the others, and goes once it is unused.

Invariants: a request that waits is given back exactly once, to go on or with the reason why not. No
more than two adapters are read that have no room yet, whatever the number of requests.
"""

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

from quickmatch.core.clock import monotonic
from quickmatch.engine.reader import Missing, Reader, Room
from quickmatch.engine.wire import Generate

_MAX_AHEAD = 2
_PATIENCE_S = 1.0  # what is first in line waits so long while others go ahead


class WaitingRequests:
    """One engine process's. Single-threaded."""

    def __init__(
        self,
        reader: Reader,
        *,
        admit: Callable[[Generate], None],
        refuse: Callable[[Generate, Exception], None],
    ) -> None:
        self._reader, self._admit, self._refuse = reader, admit, refuse
        self._by_name: dict[Hashable, list[Generate]] = {}
        self._line: deque[tuple[Missing, Room]] = deque()  # not asked for yet
        self._read: deque[tuple[Missing, Room, Future[Any]]] = deque()  # there was no room for it
        self._num_ahead = 0  # of what needs room: being read, or in `_read`
        self._first_since = 0.0  # when what is first in `_read` came to be it; inf: room is made

    def __len__(self) -> int:
        return sum(map(len, self._by_name.values()))

    def __iter__(self) -> Iterator[Generate]:
        """Yield the requests that wait."""
        for requests in self._by_name.values():
            yield from requests

    def add(self, request: Generate, missing: Missing) -> None:
        """Keep a request until what it misses has come."""
        if missing.name in self._by_name:
            self._by_name[missing.name].append(request)
            return
        self._by_name[missing.name] = [request]
        if missing.room is None:
            self._reader.start(missing.read, partial(self._let_in, missing))
        else:
            self._line.append((missing, missing.room))
            self._read_ahead()

    def remove(self, request_id: str) -> bool:
        """Forget a request; False if none of that id waits."""
        for requests in self._by_name.values():
            for request in requests:
                if request.request_id == request_id:
                    requests.remove(request)
                    return True
        return False

    def go_on(self) -> None:
        """Let in what has found room since: to be called between two steps."""
        while self._read:
            missing, room, reading = self._read[0]
            if self._by_name[missing.name] and not room.is_free():
                self._make(room)
                return
            self._read.popleft()
            self._first_since = monotonic()
            self._let_in_ahead(missing, reading)

    def _make(self, room: Room) -> None:
        if monotonic() - self._first_since >= _PATIENCE_S:
            room.make()
            self._first_since = math.inf

    def _read_ahead(self) -> None:
        while self._line and self._num_ahead < _MAX_AHEAD:
            missing, room = self._line.popleft()
            self._num_ahead += 1
            self._reader.start(missing.read, partial(self._come, missing, room))

    def _come(self, missing: Missing, room: Room, reading: Future[Any]) -> None:
        """Have what was read stand in line for room, or end its requests where it could not be."""
        if reading.exception() is not None:
            self._let_in_ahead(missing, reading)
            return
        if not self._read:
            self._first_since = monotonic()
        self._read.append((missing, room, reading))
        self.go_on()

    def _let_in_ahead(self, missing: Missing, reading: Future[Any]) -> None:
        self._num_ahead -= 1
        self._read_ahead()
        self._let_in(missing, reading)

    def _let_in(self, missing: Missing, reading: Future[Any]) -> None:
        """Let the requests go on that waited for it, or end with the reason."""
        requests = self._by_name.pop(missing.name)
        if not requests:  # all were cancelled: it would take another's room for nobody
            return
        try:
            missing.take(reading.result())
        except Exception as failure:  # process boundary: a bad folder must not end the others
            for request in requests:
                self._refuse(request, failure)
            return
        for request in requests:
            self._admit(request)
