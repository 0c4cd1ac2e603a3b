"""KV of a long sequence that is given up, so that a longer one takes no more memory.

Owns: how many tokens' KV one sequence may hold, when it gives some up, and where the rest goes.
It does not know what the numbers mean: which tokens matter least is the pass's to find, in each
layer and head by itself (`ForwardPass.evict`).

A sequence whose KV has reached the limit is drawn together before its next token is run: its first
tokens stay (every head rests attention there: StreamingLLM, arXiv 2309.17453), its latest stay, and
of those between the ones whose keys are most unlike the others' (KeyDiff, arXiv 2504.15364: keys
that point away from the mean draw the most attention; it needs no scores, so attention is computed
as fast as ever). Keys are stored rotated to their true positions: those that stay need no change.

When this happens depends on the sequence's own length alone, never on chunks, drafts or neighbours;
so a request's output still does not depend on what is batched beside it.

Places and positions part ways here: token i of a sequence that has given up n tokens is stored in
place i - n of its block table.
"""

from dataclasses import dataclass

from quickmatch.core.errors import ConfigError
from quickmatch.engine.batch import Eviction
from quickmatch.engine.blocks import BlockAllocator
from quickmatch.engine.sequence import Sequence

_FEWEST_BLOCKS = 8  # of a limit
_GIVEN_UP_AT_ONCE = 8  # one in so many tokens: few enough to keep the rest, and seldom enough
_MOST_LATEST = 256  # tokens; of a small limit half of what stays, or a model loses its thread


@dataclass(frozen=True, slots=True)
class KVLimit:
    """How many tokens' KV a sequence may hold."""

    num_tokens: int  # stored at most; whole blocks
    num_kept: int  # stored after some were given up; whole blocks
    num_first: int  # of them, the sequence's first
    num_last: int  # and its latest

    @classmethod
    def of(cls, max_kv_tokens: int, block_size: int) -> "KVLimit":
        """Round down to whole blocks. Raises ConfigError where that leaves too few."""
        num_blocks = max_kv_tokens // block_size
        if num_blocks < _FEWEST_BLOCKS:
            raise ConfigError(
                f"max_kv_tokens is {max_kv_tokens}; it must be at least "
                f"{_FEWEST_BLOCKS * block_size}, {_FEWEST_BLOCKS} blocks of {block_size} tokens"
            )
        num_kept = (num_blocks - max(1, num_blocks // _GIVEN_UP_AT_ONCE)) * block_size
        num_last = min(num_kept // 2, _MOST_LATEST)
        return cls(num_blocks * block_size, num_kept, block_size, num_last)

    def room(self, sequence: Sequence) -> int:
        """Return how many more tokens the sequence may store before it gives some up."""
        return self.num_tokens - sequence.num_stored_tokens

    def num_known(self, sequence: Sequence) -> int:
        """Return how many tokens' places a sequence needs for all that it knows by now."""
        return min(sequence.num_tokens - sequence.num_evicted_tokens, self.num_tokens)

    def evict(self, sequence: Sequence, blocks: BlockAllocator) -> Eviction | None:
        """Draw a sequence that is full together; None, and nothing done, if blocks are lacking.

        Blocks that others share or may find stay what they are: fresh ones take their place.
        """
        table, size = sequence.block_table, blocks.block_size
        num_evicted = sequence.num_evicted_tokens + self.num_tokens - self.num_kept
        num_places = min(sequence.num_tokens - num_evicted, self.num_tokens)
        num_blocks = blocks.blocks_for(num_places)
        own = [block for block in table if blocks.is_private(block)]
        others = [block for block in table if not blocks.is_private(block)]
        if num_blocks - len(own) > blocks.num_free + blocks.num_last_held(others):
            return None
        sources = _slots(table, self.num_tokens, size)
        blocks.release([*others, *own[num_blocks:]])
        fresh = [blocks.allocate() for _ in range(num_blocks - len(own))]
        table[:] = [*own[:num_blocks], *fresh]
        sequence.num_evicted_tokens = num_evicted
        targets = _slots(table, self.num_kept, size)
        return Eviction(sources, targets, self.num_first, self.num_last, sequence.id)


def _slots(table: list[int], num_tokens: int, size: int) -> list[int]:
    """Return where the first tokens of a block table lie; num_tokens in whole blocks."""
    return [block * size + i for block in table[: num_tokens // size] for i in range(size)]
