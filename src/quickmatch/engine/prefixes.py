"""Beginnings that sequences have in common: found, waited for, and published as they are computed.

Owns the digests of blocks that running prompts are going to publish. It does not hold blocks (the
allocator does) nor decide who runs (the scheduler does).
"""

from collections.abc import Iterable

from quickmatch.engine.blocks import BlockAllocator
from quickmatch.engine.sequence import Sequence


class Prefixes:
    """One scheduler's."""

    def __init__(self, blocks: BlockAllocator) -> None:
        self._blocks = blocks
        self._promised: set[bytes] = set()

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
            if block is None:
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
            digest = sequence.digest(index, size)
            self._blocks.publish(sequence.block_table[index], digest)
            self._promised.discard(digest)
            sequence.num_published_blocks = index + 1

    def take_back(self, sequence: Sequence) -> None:
        """Promise no more of a sequence: it ends, gives its blocks back or gives up KV."""
        for index in range(sequence.num_published_blocks, sequence.num_promised_blocks):
            self._promised.discard(sequence.digests[index])
        sequence.num_promised_blocks = sequence.num_published_blocks

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Raise AssertionError if a block is promised that nobody is going to publish."""
        promised = {
            digest
            for s in running
            for digest in s.digests[s.num_published_blocks : s.num_promised_blocks]
        }
        assert self._promised <= promised, "a block is promised by nobody"
