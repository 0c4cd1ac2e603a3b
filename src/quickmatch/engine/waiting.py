"""Requests that something is read for, an adapter or a grammar, before the engine takes them.

Owns who waits for what, and the order in which adapters are brought to memory: as they were asked
for, each once there is room for it. Room comes when the last sequence of another one ends, so a
request waits where more adapters are in use at once than memory holds; it is not refused. Later
requests for what memory has go ahead of it.

Invariants: a request that waits is given back exactly once, to go on or with the reason why not. No
more than two adapters are read that have no room yet, whatever the number of requests.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

from quickmatch.engine.reader import Missing, Reader
from quickmatch.engine.wire import Generate

_MAX_AHEAD = 2


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
        self._line: deque[Missing] = deque()  # of what needs room: not asked for yet
        self._read: deque[tuple[Missing, Future[Any]]] = deque()  # the same: there was no room
        self._num_ahead = 0  # the same: being read, or in `_read`

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
        if missing.needs_room:
            self._line.append(missing)
            self._read_ahead()
        else:
            self._reader.start(missing.read, partial(self._come, missing))

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
        while self._read and self._read[0][0].has_room():
            self._let_in(*self._read.popleft())

    def _read_ahead(self) -> None:
        while self._line and self._num_ahead < _MAX_AHEAD:
            missing = self._line.popleft()
            self._num_ahead += 1
            self._reader.start(missing.read, partial(self._come, missing))

    def _come(self, missing: Missing, reading: Future[Any]) -> None:
        if missing.needs_room and reading.exception() is None:
            self._read.append((missing, reading))
            self.go_on()
        else:
            self._let_in(missing, reading)

    def _let_in(self, missing: Missing, reading: Future[Any]) -> None:
        """Let the requests go on that waited for it, or end with the reason."""
        if missing.needs_room:
            self._num_ahead -= 1
            self._read_ahead()
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
