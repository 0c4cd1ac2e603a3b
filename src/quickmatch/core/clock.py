"""Time: wall clock for documents, monotonic for durations; tests put a fake in place of both."""

import time
from collections.abc import Callable

Clock = Callable[[], float]

wall: Clock = time.time  # seconds since the epoch, UTC
monotonic: Clock = time.monotonic
