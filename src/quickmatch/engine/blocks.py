"""Which KV block belongs to whom: ref-counted blocks, shared where their content is the same.

Owns: the count of references to every block, the free blocks, and the map from content to block.
It does not know sequences, tensors or the model: a block is a number.

A full block may be *published* under a digest of all that its KV depends on: the adapter version,
the isolation key, and every token from the beginning up to its end (the parent's digest stands
for those before). A later sequence with the same beginning then shares the block instead of
computing it. A published block that nobody references stays findable until its place is needed;
the least recently used goes first.

Invariant: every block is in exactly one of three places: referenced, free with nothing of worth
in it, or idle (published, unreferenced, evictable). `check_integrity` re-derives it.

Source: paged attention (Kwon et al., SOSP 2023); chained block hashes as in vLLM's prefix cache.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b

DIGEST_BYTES = 16


def root_digest(adapter_version: int, isolation_key: str) -> bytes:
    """Return what a sequence's first block digest grows from.

    adapter_version: a number that no other load of an adapter has; 0 for the base model.
    """
    text = f"{adapter_version}\0{isolation_key}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the digest of a full block: 128 bits, so that no collision is ever met."""
    content = parent + array("I", token_ids).tobytes()
    return blake2b(content, digest_size=DIGEST_BYTES).digest()


class OutOfBlocks(Exception):
    """No block is free or evictable. The scheduler checks first, so users never see it."""


class BlockAllocator:
    """Gives, shares, takes back and finds blocks."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._ref_counts = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._by_digest: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack; block 0 is given first
        self._idle: dict[int, None] = {}  # published and unreferenced, least recently used first
        self._num_touched = 0  # blocks that were ever given: their memory is taken
        self.is_frugal = False  # idle blocks are given before any that was never touched

    @property
    def num_free(self) -> int:
        """Blocks that can be given now, evictions included."""
        return len(self._free) + len(self._idle)

    @property
    def num_cheap(self) -> int:
        """Blocks that can be given now in memory that is taken already: once given, or idle."""
        num_untouched = self.num_blocks - self._num_touched
        return self.num_free - num_untouched

    @property
    def num_used(self) -> int:
        """Blocks that some sequence references."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold the KV of so many tokens."""
        return -(-num_tokens // self.block_size)

    def find(self, digest: bytes) -> int | None:
        """Return the block published under `digest`, if there is one."""
        return self._by_digest.get(digest)

    def num_idle(self, blocks: Iterable[int]) -> int:
        """Return how many of `blocks` count as free now and would not once shared."""
        return sum(block in self._idle for block in blocks)

    def is_private(self, block: int) -> bool:
        """Whether a block has one holder and nobody else can find it: it may be written over."""
        return self._ref_counts[block] == 1 and self._digests[block] is None

    def num_last_held(self, blocks: Iterable[int]) -> int:
        """Return how many of `blocks` would count as free if their holder let go of them."""
        return sum(self._ref_counts[block] == 1 for block in blocks)

    def share(self, block: int) -> None:
        """Add a reference to a block that `find` returned."""
        self._idle.pop(block, None)
        self._ref_counts[block] += 1

    def allocate(self) -> int:
        """Return a block with one reference. Raises OutOfBlocks if none is free."""
        if self._free and not (self._idle and self._is_dear(self._free[-1])):
            block = self._free.pop()
            self._num_touched = max(self._num_touched, block + 1)
        elif self._idle:
            block = next(iter(self._idle))
            del self._idle[block]
            self._unpublish(block)
        else:
            raise OutOfBlocks(f"all {self.num_blocks} KV blocks are referenced")
        self._ref_counts[block] = 1
        return block

    def _is_dear(self, block: int) -> bool:
        return self.is_frugal and block >= self._num_touched

    def release(self, block_table: Sequence[int]) -> None:
        """Drop one reference to each block.

        The last block goes first, so that of one sequence the end is evicted before the
        beginning: a beginning without its end is still of use, the other way round it is not.
        """
        for block in reversed(block_table):
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if self._digests[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None

    def publish(self, block: int, digest: bytes, *, in_place: bool = False) -> None:
        """Make a full, computed block findable.

        The first block of a content stays the one, unless this one takes its place.
        """
        if not self.prefix_caching:
            return
        old = self._by_digest.get(digest)
        if old is not None and in_place and old != block:
            self._unpublish(old)
            if old in self._idle:
                del self._idle[old]
                self._free.append(old)
            old = None
        if old is None:
            self._by_digest[digest] = block
            self._digests[block] = digest

    def _unpublish(self, block: int) -> None:
        digest = self._digests[block]
        if digest is not None:
            del self._by_digest[digest]
            self._digests[block] = None

    def check_integrity(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless the books agree with the block tables of all sequences."""
        held = Counter(block for table in block_tables for block in table)
        for block in range(self.num_blocks):
            count = self._ref_counts[block]
            assert count == held[block], f"block {block}: {count} references, {held[block]} held"
        free, idle = set(self._free), set(self._idle)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & idle, f"blocks both free and idle: {free & idle}"
        assert free | idle | set(held) == set(range(self.num_blocks)), "a block is lost"
        assert not (free | idle) & set(held), "a block is free and referenced"
        for digest, block in self._by_digest.items():
            assert self._digests[block] == digest, f"block {block} found under a wrong digest"
        published = sum(digest is not None for digest in self._digests)
        assert published == len(self._by_digest), "a published block cannot be found"
        assert all(self._digests[block] is not None for block in idle), "idle without content"
        assert all(self._digests[block] is None for block in free), "free with content"
