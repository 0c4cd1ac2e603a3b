"""Who computes what in the next step. Plain Python: no tensors, no model, no clock but its own.

Owns: the waiting queue, the running sequences, their blocks. It does not know what a token means
or when a sequence should end; the engine tells it.

One step is one flattened batch under `max_num_batched_tokens`:

1. every running sequence that decodes, oldest first, so that no prompt can hold them up; with the
   draft that was made for it, as far as budget and free blocks go: a draft never costs another
   sequence its token or its blocks;
2. then running prompts that are not through yet, a chunk each, oldest first;
3. then the head of the queue, while there is a place, budget and blocks.

A sequence gets the blocks of all its known tokens when it is admitted and one more whenever a
decoded token needs it. Only that growth can run short; then the newest running sequence is
*preempted*: its blocks go back, it waits at the head of the queue, and its tokens, kept, are
recomputed later. Sampling is keyed by position, so its output does not change.

A sequence at the head of the queue whose next prefix block is being computed just now, by one that
runs, waits for it rather than compute the same: so the n choices of a call, or a burst of calls
with one system prompt, cost one prefill.

Invariant: `running` is in order of arrival and every running sequence is older than every waiting
one, so the oldest can always take what it needs and some sequence always moves on.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from quickmatch.core.clock import Clock, monotonic
from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.blocks import BlockAllocator
from quickmatch.engine.eviction import KVLimit
from quickmatch.engine.prefixes import Prefixes
from quickmatch.engine.sequence import Sequence, SequenceState
from quickmatch.engine.speculation.tree import DraftTree


@dataclass(slots=True)
class Step:
    """What to run, and whose spans they are, in the same order."""

    sequences: list[Sequence] = field(default_factory=list)
    batch: StepBatch = field(default_factory=lambda: StepBatch([], [], [], []))


@dataclass(slots=True)
class Counters:
    """Sums since the start."""

    num_preempted: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_evicted_tokens: int = 0


class Scheduler:
    """Continuous batching with chunked prefill, first come first served."""

    def __init__(
        self,
        blocks: BlockAllocator,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_queue_len: int,
        kv_limit: KVLimit | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.blocks = blocks
        self.counters = Counters()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._live: dict[str, Sequence] = {}
        self._prefixes = Prefixes(blocks)
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_num_live = max_num_seqs + max_queue_len
        self._kv_limit = kv_limit
        self._clock = clock
        self._is_frugal = False
        self._preempted: list[int] = []  # since the last step

    def set_frugal(self, is_frugal: bool) -> None:
        """Say whether memory is short.

        Then nothing is admitted beside what runs, and that goes on in the memory that it has: the
        newest is preempted rather than take more.
        """
        self._is_frugal = self.blocks.is_frugal = is_frugal

    def heads_changed(self, has_heads: bool) -> None:
        """Say that another head is loaded, or the last one gone: see Prefixes."""
        self._prefixes.heads_changed(has_heads)

    @property
    def is_full(self) -> bool:
        """Whether every place to run is taken and the queue behind them is full."""
        return len(self._live) >= self._max_num_live

    @property
    def num_live(self) -> int:
        """Sequences waiting or running."""
        return len(self._live)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._live.values())

    def find(self, request_id: str) -> Sequence | None:
        """Return the waiting or running sequence of that id."""
        return self._live.get(request_id)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. Its `max_len` must fit the blocks; the engine has checked."""
        self._live[sequence.request_id] = sequence
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """End a waiting or running sequence and give its blocks back."""
        if sequence.state is SequenceState.RUNNING:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)
        sequence.state = SequenceState.FINISHED
        del self._live[sequence.request_id]

    # ---- planning a step

    @property
    def decoding(self) -> list[Sequence]:
        """Running sequences that are through with their prompt, oldest first."""
        return [s for s in self.running if s.num_new_tokens == 1 and s.num_output_tokens]

    @property
    def num_prefill_rows(self) -> int:
        """Rows of the next step that will be prompts', if the budget has them."""
        waiting = sum(s.num_new_tokens for s in self.running if s.num_new_tokens > 1)
        if self.waiting and len(self.running) < self._max_num_seqs:
            waiting += self.waiting[0].num_new_tokens
        return min(waiting, self._max_num_batched_tokens)

    @property
    def max_draft_rows(self) -> int:
        """Rows of a step that drafts may take: half of what decoding leaves."""
        return (self._max_num_batched_tokens - len(self.running)) // 2

    def schedule(self, drafts: Mapping[int, DraftTree] | None = None) -> Step:
        """Plan one step. It is empty only if no sequence is live.

        drafts: by the id of a decoding sequence; one that does not fit is cut.
        """
        step = Step()
        if self._kv_limit is not None:
            self._evict(step, self._kv_limit)
        budget, prefills = self._schedule_decodes(step, drafts or {})
        for sequence in prefills:
            budget -= self._add_span(step, sequence, budget)
        while budget > 0 and self.waiting and len(self.running) < self._max_num_seqs:
            if (self._is_frugal and self.running) or not self._admit(self.waiting[0]):
                break
            budget -= self._add_span(step, self.running[-1], budget)
        if self._preempted:
            step.batch.preempted, self._preempted = self._preempted, []
        return step

    def _evict(self, step: Step, limit: KVLimit) -> None:
        """Make place in every running sequence that holds as much KV as it may."""
        for sequence in tuple(self.running):
            if sequence.state is not SequenceState.RUNNING or limit.room(sequence) > 0:
                continue
            self._prefixes.take_back(sequence)
            sequence.is_watched = False  # heads store theirs by position
            while (eviction := limit.evict(sequence, self.blocks)) is None:
                newest = self.running[-1]
                self._preempt(newest)
                if newest is sequence:
                    break
            else:
                step.batch.evictions.append(eviction)
                self.counters.num_evicted_tokens += limit.num_tokens - limit.num_kept

    def _schedule_decodes(
        self, step: Step, drafts: Mapping[int, DraftTree]
    ) -> tuple[int, list[Sequence]]:
        """Give one token to each decoding sequence; return what is left, and who prefills.

        Preemption takes from the end of `running`, which this walk has not reached: who is in
        the step or among the prefills already stays.
        """
        budget = self._max_num_batched_tokens
        draft_budget = max(0, self.max_draft_rows)
        prefills: list[Sequence] = []
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            index += 1
            if sequence.num_new_tokens > 1:
                prefills.append(sequence)
            elif budget > 0 and self._grow(sequence):
                tree = drafts.get(sequence.id)
                if tree is None:
                    budget -= self._add_span(step, sequence, 1)
                    continue
                num_rows = self._add_draft(step, sequence, tree, draft_budget)
                budget -= num_rows
                draft_budget -= num_rows - 1
        return budget, prefills

    def reserve(self, sequence: Sequence, num_tokens: int) -> int:
        """Get blocks for so many tokens beyond the next one; return for how many there are now.

        Takes no block that a running sequence could need for its next token.
        """
        spare = self.blocks.num_cheap if self._is_frugal else self.blocks.num_free
        size = self.blocks.block_size
        before = sequence.num_stored_tokens + 1
        wanted = before + num_tokens
        if self._kv_limit is not None:
            wanted = min(wanted, self._kv_limit.num_tokens)
        table = sequence.block_table
        while len(table) * size < wanted and spare > len(self.running):
            table.append(self.blocks.allocate())
            spare -= 1
        return max(0, min(wanted, len(table) * size) - before)

    def _add_draft(self, step: Step, sequence: Sequence, tree: DraftTree, budget: int) -> int:
        """Append the last token with as much of the tree as fits; return the number of rows."""
        num_nodes = min(len(tree.token_ids), budget)
        num_nodes = min(num_nodes, self.reserve(sequence, num_nodes))
        if num_nodes < 1:
            return self._add_span(step, sequence, 1)
        if num_nodes < len(tree.token_ids):
            tree = tree.keep(range(num_nodes))
        start, batch = sequence.num_computed_tokens, step.batch
        first = sequence.num_stored_tokens
        table, size = sequence.block_table, self.blocks.block_size
        step.sequences.append(sequence)
        batch.spans.append(
            Span(
                start=len(batch.token_ids),
                num_tokens=1 + num_nodes,
                context_len=first,
                block_table=table,
                adapter_row=sequence.adapter_row,
                sample=sequence.sample,
                tree=tree,
                sequence_id=sequence.id,
                is_watched=sequence.is_watched,
            )
        )
        batch.token_ids += [sequence.token_ids[start], *tree.token_ids]
        positions = [start]
        for parent in tree.parents:
            positions.append(positions[parent + 1] + 1)
        batch.positions += positions
        places = range(first, first + 1 + num_nodes)
        batch.slots += [table[p // size] * size + p % size for p in places]
        return 1 + num_nodes

    @property
    def _num_spare(self) -> int:
        """Blocks that a running sequence may take. The last one that runs may take any."""
        if self._is_frugal and len(self.running) > 1:
            return self.blocks.num_cheap
        return self.blocks.num_free

    def _grow(self, sequence: Sequence) -> bool:
        """Make room for the next token's KV, preempting the newest; False if that is itself."""
        if sequence.num_stored_tokens < len(sequence.block_table) * self.blocks.block_size:
            return True
        while not self._num_spare:
            newest = self.running[-1]
            self._preempt(newest)
            if newest is sequence:
                return False
        sequence.block_table.append(self.blocks.allocate())
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.state = SequenceState.WAITING
        self.waiting.appendleft(sequence)
        self.counters.num_preempted += 1
        self._preempted.append(sequence.id)

    def _admit(self, sequence: Sequence) -> bool:
        """Start the queue's head if its blocks are there, one to spare for each that runs."""
        num_places = self._num_places(sequence)
        shared = self._prefixes.find(sequence, num_places)
        if shared is None:
            return False
        num_fresh = self.blocks.blocks_for(num_places) - len(shared)
        num_free = self.blocks.num_free - self.blocks.num_idle(shared)
        if num_fresh + len(self.running) > num_free:
            return False
        for block in shared:
            self.blocks.share(block)
        sequence.block_table = shared + [self.blocks.allocate() for _ in range(num_fresh)]
        sequence.num_computed_tokens = len(shared) * self.blocks.block_size
        sequence.num_published_blocks = len(shared)
        self._prefixes.promise(sequence, num_places)
        sequence.state = SequenceState.RUNNING
        self.waiting.popleft()
        self.running.append(sequence)
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = self._clock()
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self.counters.num_prefix_hit_tokens += sequence.num_computed_tokens
        return True

    def _num_places(self, sequence: Sequence) -> int:
        """Return for how many tokens a sequence needs blocks, as far as it is known."""
        limit = self._kv_limit
        return sequence.num_tokens if limit is None else limit.num_known(sequence)

    def _add_span(self, step: Step, sequence: Sequence, budget: int) -> int:
        """Append the sequence's next tokens, at most `budget`; return how many."""
        start, first = sequence.num_computed_tokens, sequence.num_stored_tokens
        num_tokens = min(sequence.num_new_tokens, budget)
        if self._kv_limit is not None:
            num_tokens = min(num_tokens, self._kv_limit.room(sequence))
        if num_tokens <= 0:
            return 0
        is_last_chunk = num_tokens == sequence.num_new_tokens
        batch, table, size = step.batch, sequence.block_table, self.blocks.block_size
        step.sequences.append(sequence)
        batch.spans.append(
            Span(
                start=len(batch.token_ids),
                num_tokens=num_tokens,
                context_len=first,
                block_table=table,
                adapter_row=sequence.adapter_row,
                sample=sequence.sample if is_last_chunk else None,
                sequence_id=sequence.id,
                is_watched=sequence.is_watched,
                next_token_id=-1 if is_last_chunk else sequence.token_ids[start + num_tokens],
            )
        )
        if num_tokens == 1:  # the common case, decoding, without slices and generators
            batch.token_ids.append(sequence.token_ids[start])
            batch.positions.append(start)
            batch.slots.append(table[first // size] * size + first % size)
            return 1
        batch.token_ids.extend(sequence.token_ids[start : start + num_tokens])
        batch.positions.extend(range(start, start + num_tokens))
        places = range(first, first + num_tokens)
        batch.slots.extend([table[p // size] * size + p % size for p in places])
        return num_tokens

    # ---- after a step

    def advance(self, sequence: Sequence, num_tokens: int, *, is_decode: bool = False) -> None:
        """Record that the KV of the sequence's next `num_tokens` tokens is stored.

        They are among its `token_ids` by now. Blocks that only rejected nodes lay in go back.
        """
        if is_decode:
            self.counters.num_decode_tokens += num_tokens
        else:
            self.counters.num_prefill_tokens += num_tokens
        sequence.num_computed_tokens += num_tokens
        self._prefixes.publish(sequence)
        needed = self.blocks.blocks_for(self._num_places(sequence))
        if len(sequence.block_table) > needed:
            self.blocks.release(sequence.block_table[needed:])
            del sequence.block_table[needed:]

    def _release(self, sequence: Sequence) -> None:
        self._prefixes.take_back(sequence)
        self.blocks.release(sequence.block_table)
        sequence.forget_kv()

    def check_integrity(self) -> None:
        """Raise AssertionError unless queue, running list, blocks and sequences agree."""
        self.blocks.check_integrity(s.block_table for s in self.running)
        order = [*self.running, *self.waiting]
        assert len(order) == len(self._live), "a sequence is in no list or in two"
        assert {id(s) for s in order} == {id(s) for s in self}, "a live sequence is lost"
        arrivals = [s.arrival_s for s in order]
        assert arrivals == sorted(arrivals), "a newer sequence is before an older one"
        assert len(self.running) <= self._max_num_seqs, "too many sequences run"
        self._prefixes.check_integrity(self.running)
        for sequence in self.waiting:
            assert sequence.state is SequenceState.WAITING, f"{sequence.request_id} waits wrongly"
            assert not sequence.block_table, f"{sequence.request_id} waits and holds blocks"
        for sequence in self.running:
            room = len(sequence.block_table) * self.blocks.block_size
            assert sequence.state is SequenceState.RUNNING, f"{sequence.request_id} runs wrongly"
            assert sequence.num_stored_tokens <= room, f"{sequence.request_id} overflows"
            assert sequence.num_new_tokens >= 1, f"{sequence.request_id} has nothing to run"
