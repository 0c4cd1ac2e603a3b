"""Drafts from the caller's own guess at the output: the `prediction` of a code edit.

Owns one request's guess and the place in it that the output has reached. While the output agrees,
the draft is simply what comes next. After a difference it looks for the place where the last few
tokens of the output stand in the guess again, the nearest one ahead first, since edits mostly move
forward. Knows no scheduler; plain Python.
"""

from collections.abc import Sequence

from quickmatch.engine.speculation.tree import DraftTree, Source

RESYNC_TOKENS = 3  # so many have to agree before the guess is trusted again
MAX_FEATURE = 63


class PredictionDrafter:
    """One request's guess. Feed it every emitted token."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = list(token_ids)
        self._next: int | None = 0  # place of the token that should come next; None: lost
        self._num_matched = 0
        self._last: list[int] = []  # of the output, at most RESYNC_TOKENS
        self._places: dict[tuple[int, ...], list[int]] = {}
        for end in range(RESYNC_TOKENS, len(self._token_ids) + 1):
            key = tuple(self._token_ids[end - RESYNC_TOKENS : end])
            self._places.setdefault(key, []).append(end)
        self._passed = 0  # how far the output has come in the guess

    def extend(self, token_ids: Sequence[int]) -> int:
        """Take in what was emitted; return how many of these tokens the guess foretold."""
        num_foretold = 0
        for token_id in token_ids:
            self._last = [*self._last, token_id][-RESYNC_TOKENS:]
            if self._next is not None and self._at(self._next) == token_id:
                self._next += 1
                self._num_matched += 1
                num_foretold += 1
            else:
                self._next = self._find_again()
                self._num_matched = RESYNC_TOKENS if self._next is not None else 0
            if self._next is not None:
                self._passed = self._next
        return num_foretold

    def draft(self, max_tokens: int) -> DraftTree:
        """Return what the guess says comes next, as a chain; empty while it is lost."""
        if self._next is None:
            return DraftTree()
        token_ids = self._token_ids[self._next : self._next + max_tokens]
        # Trust grows with what agreed; the controller puts its own measurements beside this.
        confidence = min(0.97, 0.75 + 0.02 * self._num_matched)
        feature = min(self._num_matched, MAX_FEATURE)
        return DraftTree.chain(token_ids, [confidence] * len(token_ids), Source.PREDICTION, feature)

    def _at(self, place: int) -> int | None:
        return self._token_ids[place] if place < len(self._token_ids) else None

    def _find_again(self) -> int | None:
        places = self._places.get(tuple(self._last))
        if not places:
            return None
        return min(places, key=lambda place: (place < self._passed, abs(place - self._passed)))
