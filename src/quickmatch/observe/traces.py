"""Traces on their way to the store: a bounded queue and one thread that writes in batches.

Owns the queue and the thread. Whether a call is traced, and what is in a trace, the gateway
decides. Invariant: `record` never blocks a call; a trace that does not fit the queue is dropped
and counted. What was recorded before `flush` began is in the store when it returns.
"""

import logging
import threading
from collections import deque
from dataclasses import dataclass

from quickmatch.core.errors import QuickmatchError
from quickmatch.observe.metrics import Metrics
from quickmatch.store.documents import Trace
from quickmatch.store.protocol import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """Bounds of the queue and the batches."""

    max_queue_len: int = 4096
    max_batch: int = 128
    linger_s: float = 0.1  # how long a first trace waits for company


class TraceWriter:
    """Writes traces behind the calls' backs. Its thread starts with the first trace."""

    def __init__(
        self, store: Store, metrics: Metrics, settings: TraceSettings | None = None
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._settings = settings or TraceSettings()
        self._queue: deque[Trace] = deque()
        self._changed = threading.Condition()
        self._num_writing = 0
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def record(self, trace: Trace) -> bool:
        """Queue one trace; return False if it was dropped."""
        with self._changed:
            if self._is_closing or len(self._queue) >= self._settings.max_queue_len:
                self._metrics.traces_dropped.inc()
                return False
            self._queue.append(trace)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything recorded so far is written; return whether it was in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._queue and not self._num_writing, timeout_s
            )

    def close(self) -> None:
        """Write what is queued and end the thread. Later traces are dropped."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=10.0)

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                self._store.insert(*batch)
            except QuickmatchError as error:  # a full disk must not end tracing for good
                log.error("%d traces lost: %s", len(batch), error.message)
                self._metrics.traces_dropped.inc(len(batch))
            with self._changed:
                self._num_writing = 0
                self._changed.notify_all()

    def _next_batch(self) -> list[Trace]:
        """Wait for traces; an empty batch means the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_closing)
            self._changed.wait_for(
                lambda: len(self._queue) >= self._settings.max_batch or self._is_closing,
                self._settings.linger_s,
            )
            size = min(len(self._queue), self._settings.max_batch)
            batch = [self._queue.popleft() for _ in range(size)]
            self._num_writing = len(batch)
            return batch
