"""Beginnings that sequences have in common: found, waited for, and published as they are computed.

Owns the digests of blocks that running prompts are going to publish, and which blocks a head was
told of. It does not hold blocks (the allocator does) nor decide who runs (the scheduler does).

A trained head keeps keys and values of its own at the target's places, of the sequences that it is
told of. A sequence that it shall draft for therefore shares only blocks that it knows, and computes
the others anew: its own take their place.
"""

from collections.abc import Iterable

from quickmatch.engine.blocks import BlockAllocator
from quickmatch.engine.sequence import Sequence


class Prefixes:
    """One scheduler's."""

    def __init__(self, blocks: BlockAllocator) -> None:
        self._blocks = blocks
        self._promised: set[bytes] = set()
        self._has_heads = False
        self._told: dict[int, bytes] = {}  # blocks that heads were told of, and what they held then

    def heads_changed(self, has_heads: bool) -> None:
        """Whoever is loaded now was told of nothing yet."""
        self._has_heads = has_heads
        self._told.clear()

    def find(self, sequence: Sequence, num_places: int) -> list[int] | None:
        """Return the published blocks it begins with; None if one more is worth waiting for.

        num_places: that its tokens need. The block of the last is never among them: that token
        has to be run.
        """
        size = self._blocks.block_size
        shared: list[int] = []
        for index in range((num_places - 1) // size):
            digest = sequence.digest(index, size)
            block = self._blocks.find(digest)
            if block is None or (self._is_told(sequence) and not self._knows(block, digest)):
                return None if digest in self._promised else shared
            shared.append(block)
        return shared

    def promise(self, sequence: Sequence, num_places: int) -> None:
        """Announce the full blocks that its prefill is going to publish."""
        if self._blocks.prefix_caching:
            size = self._blocks.block_size
            sequence.num_promised_blocks = num_places // size
            for index in range(sequence.num_published_blocks, sequence.num_promised_blocks):
                self._promised.add(sequence.digest(index, size))

    def publish(self, sequence: Sequence) -> None:
        """Let others find the full blocks that it has computed."""
        if sequence.num_evicted_tokens:
            return  # what comes after depends on what was given up
        size = self._blocks.block_size
        for index in range(sequence.num_published_blocks, sequence.num_computed_tokens // size):
            digest, block = sequence.digest(index, size), sequence.block_table[index]
            found = self._blocks.find(digest)
            if self._is_told(sequence) and (found is None or not self._knows(found, digest)):
                self._blocks.publish(block, digest, in_place=True)
                self._told[block] = digest
            else:
                self._blocks.publish(block, digest)
            self._promised.discard(digest)
            sequence.num_published_blocks = index + 1

    def take_back(self, sequence: Sequence) -> None:
        """Promise no more of a sequence: it ends, gives its blocks back or gives up KV."""
        for index in range(sequence.num_published_blocks, sequence.num_promised_blocks):
            self._promised.discard(sequence.digests[index])
        sequence.num_promised_blocks = sequence.num_published_blocks

    def _is_told(self, sequence: Sequence) -> bool:
        return self._has_heads and sequence.is_watched

    def _knows(self, block: int, digest: bytes) -> bool:
        return self._told.get(block) == digest

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Raise AssertionError if a block is promised that nobody is going to publish."""
        promised = {
            digest
            for s in running
            for digest in s.digests[s.num_published_blocks : s.num_promised_blocks]
        }
        assert self._promised <= promised, "a block is promised by nobody"
