"""Where the n-grams that end a context occurred before: hash chains, newest first (LZ77's).

Owns: token slots, and for each order n a link from a slot to the slot before it whose last n tokens
fell into the same bucket. Knows neither sequences nor documents: who owns a slot, and whether a
link still means anything, the caller says. A bucket may hold other n-grams too, so every look is
verified token by token; nothing is ever removed from a chain, overwriting does it.

The plain twin of src/native/suffix/ngram_chains.hpp, bucket for bucket.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

ORDERS = (1, 2, 4, 10, 24)
MAX_MATCH = 63  # longer matches count as this long
MAX_LOOKS = 32  # slots looked at in one chain
MAX_OCCURRENCES = 32  # that a draft is made of, of each source
MULTIPLIER = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
_MIN_BUCKET_BITS = 8
_SLOTS_PER_BUCKET = 4  # more buckets find no more; measured: docs/lab-notes.md
_WORD_BYTES = 4
_NO_LINKS = array("I", (0,) * len(ORDERS))


class Owner(NamedTuple):
    """What a slot belongs to: slots [begin, end) of a text that was seen `times` times."""

    begin: int
    end: int
    times: int


class Occurrence(NamedTuple):
    """The context occurred before: its last `length` tokens end just before slot `next`."""

    next: int
    end: int
    length: int
    times: int


class NgramChains:
    """Slots and their chains. Memory: 28 bytes a slot, and the buckets' heads."""

    def __init__(self, max_slots: int) -> None:
        bits = _MIN_BUCKET_BITS
        while _SLOTS_PER_BUCKET << bits < max_slots:
            bits += 1
        self.tokens = array("I")
        self.marks = array("I")  # of each slot: its owner's, as put() was told
        self._shift = 64 - bits
        # [order][bucket]: a slot + 1, 0: none
        self._heads = [array("I", bytes(_WORD_BYTES << bits)) for _ in ORDERS]
        self._links = array("I")  # [slot][order], flat
        self.max_slots = _SLOTS_PER_BUCKET << bits  # beyond that chains get long

    @property
    def num_bytes(self) -> int:
        """Memory of slots, links and heads."""
        num_heads = len(self._heads) * len(self._heads[0])
        num_words = len(self.tokens) + len(self.marks) + len(self._links) + num_heads
        return _WORD_BYTES * num_words

    def put(self, slot: int, token: int, mark: int) -> None:
        """Write a token and its owner's mark; `slot` may be the first beyond those written."""
        if slot == len(self.tokens):
            self.tokens.append(token)
            self.marks.append(mark)
            self._links.extend(_NO_LINKS)
        else:
            self.tokens[slot] = token
            self.marks[slot] = mark

    def index(self, slot: int, begin: int, seed: int) -> None:
        """Make the n-grams that end at `slot` findable. Done once its continuation is known."""
        first = max(begin, slot + 1 - ORDERS[-1])
        buckets = self._buckets(self.tokens[first : slot + 1], seed)
        at = slot * len(ORDERS)
        self._links[at : at + len(ORDERS)] = _NO_LINKS
        for i, bucket in enumerate(buckets):
            head = self._heads[i][bucket]
            # The head may be what this very slot held before it was overwritten.
            if head != slot + 1:
                self._links[at + i] = head
            self._heads[i][bucket] = slot + 1

    def find(
        self, context: Sequence[int], seed: int, owner_of: Callable[[int, int], Owner | None]
    ) -> list[Occurrence]:
        """Return where the context's last tokens occurred, longest match first, then newest.

        owner_of(slot, previous): the owner of a slot that was reached from `previous` (equal to it
        at a chain's head), None if the slot has been overwritten or dropped since, 0 times if
        the context's owner may not see it.
        """
        found: list[Occurrence] = []
        buckets = self._buckets(context, seed)
        limit = MAX_MATCH
        for i in reversed(range(len(buckets))):
            if len(found) == MAX_OCCURRENCES:
                break
            new = self._follow(
                i, buckets[i], context, limit, MAX_OCCURRENCES - len(found), owner_of
            )
            found += sorted(new, key=lambda occurrence: -occurrence.length)
            limit = ORDERS[i] - 1  # longer matches were found in this chain
        return found

    def _follow(
        self,
        i: int,
        bucket: int,
        context: Sequence[int],
        limit: int,
        room: int,
        owner_of: Callable[[int, int], Owner | None],
    ) -> list[Occurrence]:
        """Return the matches of ORDERS[i] to `limit` tokens that one chain leads to."""
        found: list[Occurrence] = []
        entry = self._heads[i][bucket]
        previous = entry - 1
        for _ in range(MAX_LOOKS):
            if not entry or len(found) == room:
                break
            slot = entry - 1
            owner = owner_of(slot, previous)
            if owner is None:
                break
            length = self._match(slot, owner.begin, context) if owner.times else 0
            if ORDERS[i] <= length <= limit:
                found.append(Occurrence(slot + 1, owner.end, length, owner.times))
            previous, entry = slot, self._links[slot * len(ORDERS) + i]
        return found

    def _match(self, slot: int, begin: int, context: Sequence[int]) -> int:
        most = min(MAX_MATCH, len(context), slot - begin + 1)
        tokens = self.tokens
        length = 0
        while length < most and tokens[slot - length] == context[-1 - length]:
            length += 1
        return length

    def _buckets(self, context: Sequence[int], seed: int) -> list[int]:
        """Return the buckets of the n-grams that end the context, one for each order it holds."""
        out: list[int] = []
        hashed, taken = seed, 0
        for order in ORDERS:
            if order > len(context):
                break
            while taken < order:
                taken += 1
                hashed = ((hashed ^ context[-taken]) * MULTIPLIER) & MASK
            out.append((((hashed ^ taken) * MULTIPLIER) & MASK) >> self._shift)
        return out
