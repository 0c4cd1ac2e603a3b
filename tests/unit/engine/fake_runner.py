"""A model that is a hash of its KV memory: any wrong slot, table, position or adapter shows.

Each token writes what it is into its slot. To sample, a span reads its whole context back through
its block table and hashes it with the seed. So two runs of a request agree only if everything the
scheduler said was right, and `alone` says what the answer has to be.
"""

from hashlib import blake2b
from typing import Any, ClassVar

from quickmatch.core.errors import ConfigError
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import (
    Eviction,
    Sampled,
    SampleState,
    Span,
    StepBatch,
    StepResult,
)
from quickmatch.engine.eviction import KVLimit

Entry = tuple[int, int, str]  # token id, position, adapter load


def choose(entries: list[Entry], sample: SampleState, vocab_size: int, num_drafted: int = 0) -> int:
    """The next token: a function of all that the KV memory should hold, and of the seed."""
    num_output = len(sample.output_token_ids) + num_drafted
    is_eos_masked = num_output < sample.params.min_tokens
    salt = 0
    while True:
        digest = blake2b(repr((entries, sample.seed, salt)).encode(), digest_size=8).digest()
        token_id = int.from_bytes(digest) % vocab_size
        if not (is_eos_masked and token_id in sample.eos_token_ids):
            return token_id
        salt += 1


def keep(entries: list[Entry], limit: KVLimit) -> list[Entry]:
    """What a sequence that is full goes on with: an order that only the entries decide."""
    first, last = limit.num_first, len(entries) - limit.num_last
    middle = sorted(entries[first:last], key=lambda e: blake2b(repr(e).encode()).digest())
    chosen = middle[: limit.num_kept - limit.num_first - limit.num_last]
    return [*entries[:first], *sorted(chosen, key=lambda e: e[1]), *entries[last:]]


class FakeRunner:
    """Implements `protocol.Runner`."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_model_len: int = 128,
        vocab_size: int = 53,
        eos_token_ids: tuple[int, ...] = (0,),
        max_adapters: int = 8,
        kv_limit: KVLimit | None = None,
    ) -> None:
        self.kv_limit = kv_limit
        self.max_adapters = max_adapters
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self.free_bytes = 1 << 40  # of the machine
        self.batches: list[StepBatch] = []
        self.num_evicted = 0
        self.num_moved = 0  # accepted nodes that did not lie in their places
        self.missing = {"missing"}  # paths of adapters that are not there
        self.loaded: dict[str, int] = {}  # adapter id -> row
        self._loads: dict[int, str] = {-1: "base"}  # row -> content
        self._slots: list[Entry | None] = [None] * (num_blocks * block_size)

    def free_memory_bytes(self) -> int:
        return self.free_bytes

    def run(self, batch: StepBatch) -> StepResult:
        assert batch.spans, "an empty batch was run"
        assert len(batch.token_ids) == len(batch.positions) == len(batch.slots)
        assert len(set(batch.slots)) == len(batch.slots), "two tokens write one slot"
        self.batches.append(batch)
        for eviction in batch.evictions:
            self._evict(eviction)
        row = 0
        for span in batch.spans:
            assert span.start == row
            row += span.num_tokens
            self._write(batch, span)
        assert row == len(batch.token_ids)
        return StepResult([self._sample(span) for span in batch.spans])

    def _evict(self, eviction: Eviction) -> None:
        limit = self.kv_limit
        assert limit is not None
        assert (len(eviction.sources), len(eviction.targets)) == (limit.num_tokens, limit.num_kept)
        held = [self._slots[slot] for slot in eviction.sources]
        kept = keep([entry for entry in held if entry is not None], limit)
        self.num_evicted += len(held) - len(kept)
        for slot, entry in zip(eviction.targets, kept, strict=True):
            self._slots[slot] = entry

    def _write(self, batch: StepBatch, span: Span) -> None:
        depths = range(span.num_tokens) if span.tree is None else [0, *span.tree.depths()]
        num_evicted = batch.positions[span.start] - span.context_len
        assert num_evicted == 0 or self.kv_limit is not None
        for i, depth in enumerate(depths):
            position = batch.positions[span.start + i]
            slot = batch.slots[span.start + i]
            assert position == num_evicted + span.context_len + depth
            assert slot == self._slot(span, span.context_len + i)
            content = self._loads[span.adapter_row]
            self._slots[slot] = (batch.token_ids[span.start + i], position, content)

    def _slot(self, span: Span, place: int) -> int:
        block = span.block_table[place // self.block_size]
        return block * self.block_size + place % self.block_size

    def _sample(self, span: Span) -> Sampled | None:
        """Walk the tree as the real runner does, and move what was accepted."""
        if span.sample is None:
            return None
        known = span.context_len + (span.num_tokens if span.tree is None else 1)
        entries = [self._read(span, place) for place in range(known)]
        children = {} if span.tree is None else span.tree.children()
        node, sampled = -1, Sampled([])
        while True:
            depth = len(sampled.accepted)
            token_id = choose(entries, span.sample, self.vocab_size, depth)
            sampled.token_ids.append(token_id)
            k = span.sample.params.logprobs
            if k is not None:
                likely = [(i, -1.0 - i) for i in range(k)]
                sampled.logprobs.append([(token_id, -0.5), *likely])
            child = children.get(node, {}).get(token_id)
            if child is None:
                break
            entries.append(self._read(span, known + child))
            sampled.accepted.append(child)
            node = child
        for place, accepted in enumerate(sampled.accepted):
            self._slots[self._slot(span, known + place)] = entries[known + place]
            assert accepted >= place
            self.num_moved += accepted != place
        return sampled

    def _read(self, span: Span, place: int) -> Entry:
        entry = self._slots[self._slot(span, place)]
        assert entry is not None, f"place {place} was never computed"
        return entry

    # ---- drafts: none of its own

    draft_versions: ClassVar[dict[str, str]] = {}

    def can_draft(self, adapter_row: int, *, is_watched: bool) -> bool:  # noqa: ARG002
        return False

    def forget(self, sequence_id: int) -> None:
        pass

    # ---- adapters

    def read_adapter(self, path: str) -> str:
        if path in self.missing:
            raise ConfigError(f"{path} does not exist; check the path")
        return path

    def put_adapter(self, adapter_id: str, path: str) -> dict[str, Any]:
        assert len(self.loaded) < self.max_adapters
        row = next(r for r in range(len(self._loads)) if r not in self._loads)
        self.loaded[adapter_id] = row
        self._loads[row] = path
        return {"row": row}

    def unload_adapter(self, adapter_id: str, *, keeps_head: bool = False) -> None:  # noqa: ARG002
        del self._loads[self.loaded.pop(adapter_id)]

    @property
    def num_adapters(self) -> int:
        return len(self.loaded)

    def adapter_row(self, adapter_id: str) -> int:
        return self.loaded[adapter_id]

    # ---- what is right

    def alone(
        self, prompt: list[int], params: SamplingParams, *, content: str = "base"
    ) -> tuple[list[int], str]:
        """Return the tokens and finish reason of a request with a seed, run by itself."""
        assert params.seed is not None
        eos = () if params.ignore_eos else self.eos_token_ids
        sample = SampleState(
            params, params.seed, prompt, eos_token_ids=(*eos, *params.stop_token_ids)
        )
        limit = self.max_model_len
        if self.kv_limit is None:
            limit = min(limit, self.num_blocks * self.block_size)
        if params.max_tokens is not None:
            limit = len(prompt) + params.max_tokens
        tokens = list(prompt)
        entries: list[Entry] = []
        num_run = 0
        while True:
            while num_run < len(tokens):
                if self.kv_limit is not None and len(entries) == self.kv_limit.num_tokens:
                    entries = keep(entries, self.kv_limit)
                entries.append((tokens[num_run], num_run, content))
                num_run += 1
            token_id = choose(entries, sample, self.vocab_size)
            tokens.append(token_id)
            sample.output_token_ids.append(token_id)
            if token_id in sample.eos_token_ids:
                return sample.output_token_ids, "stop"
            if len(tokens) >= limit:
                return sample.output_token_ids, "length"
