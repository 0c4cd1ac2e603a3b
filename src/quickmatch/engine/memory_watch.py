"""Whether the machine is running out of memory, told before it has none left.

Keys and values take memory as they are written, other programs take theirs, and a process that asks
for more than there is gets killed with all its requests. So below a bound new requests are refused,
and those that run go on in the memory that there is. Owns the measure and the alarm; what follows
from it is the engine's and the scheduler's affair.
"""

import logging
from collections.abc import Callable

from quickmatch.core.clock import Clock, monotonic

_LOOK_EVERY_S = 0.25

logger = logging.getLogger(__name__)


class MemoryWatch:
    """One engine's. free_bytes: measures what is left on the machine, or in its container."""

    def __init__(
        self, least_bytes: int, free_bytes: Callable[[], int], *, clock: Clock = monotonic
    ) -> None:
        self.is_low = False  # at the last look
        self._least_bytes = least_bytes
        self._free_bytes = free_bytes
        self._clock = clock
        self._looked_s: float | None = None
        self._found_bytes = 0

    def look(self) -> bool:
        """Return whether less than the bound is left; measured anew four times a second."""
        now = self._clock()
        if self._looked_s is not None and now - self._looked_s < _LOOK_EVERY_S:
            return self.is_low
        self._looked_s = now
        self._found_bytes = self._free_bytes()
        was_low, self.is_low = self.is_low, self._found_bytes < self._least_bytes
        if self.is_low and not was_low:
            logger.error("%s; new requests are refused until there is more", self.words)
        elif was_low and not self.is_low:
            logger.warning("memory is there again: %d MiB", self._found_bytes >> 20)
        return self.is_low

    @property
    def words(self) -> str:
        """What was found, for a message."""
        return (
            f"{self._found_bytes >> 20} MiB of memory are left, fewer than the "
            f"{self._least_bytes >> 20} of engine.min_free_memory_bytes"
        )
