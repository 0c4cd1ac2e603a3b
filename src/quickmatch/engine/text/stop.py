"""Stop strings in a stream of text: found wherever the pieces happen to break.

Owns: the tail of the text that may be the beginning of a stop string, held back until it is known
not to be. It does not know tokens.

Invariant: what is emitted depends on the text alone, not on how it was cut into pieces: the stop
string that is complete first ends it (of several complete at the same place, the longest), and
neither it nor anything behind it is emitted.
"""

from collections.abc import Sequence


class StopMatcher:
    """Watches the text of one sequence."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_matched = False

    def push(self, text: str) -> str:
        """Take the next piece; return what can be shown now. Nothing after a match."""
        if self.is_matched or not self._stops:
            return "" if self.is_matched else text
        buffer = self._held + text
        found = [
            (start + len(stop), start) for stop in self._stops if (start := buffer.find(stop)) >= 0
        ]
        if found:
            self.is_matched, self._held = True, ""
            return buffer[: min(found)[1]]
        num_held = max(_num_held(buffer, stop) for stop in self._stops)
        cut = len(buffer) - num_held
        self._held = buffer[cut:]
        return buffer[:cut]

    def flush(self) -> str:
        """Return what was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _num_held(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
