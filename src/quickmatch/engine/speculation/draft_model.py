"""Drafts with a small model of the target's vocabulary: the generic baseline.

Owns a second decoder, with keys and values at the target's slots in a cache of its own. It looks at
token ids alone and is told of nothing: what it has not computed of a sequence it computes when it
is asked to draft, at most _MAX_ROWS tokens a time, so that a long prompt holds up nobody.

What it has computed it knows by content. A full block of tokens that stand is remembered under a
hash of all tokens up to its end, until it is written again; so a sequence that starts with blocks
of another's goes on from there. Drafted tokens are written behind the sequence, in its own blocks
and, where they end, in spare ones that no sequence has; those that come to stand are not computed
again.

The two vocabularies may be padded to different sizes. What the target does not know is not drafted,
and behind a token that this model does not know nothing is.

Invariant: keys and values are read only of positions whose tokens and slots are those of now.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import SampleState, Span, StepBatch, rows_to_sample
from quickmatch.engine.forward_pass import PassSize, make_pass
from quickmatch.engine.model_config import ModelConfig, read_model_config
from quickmatch.engine.speculation.kept_rows import DraftRequest
from quickmatch.engine.speculation.same_vocabulary import check_same_vocabulary
from quickmatch.engine.speculation.tree import DraftTree, Source

_MAX_ROWS = 512  # tokens caught up with in one call, over all sequences
_NUM_SPARE_BLOCKS = 256
_ASKS = SampleState(SamplingParams(), 0, [])  # marks a span whose last row's logits are wanted


@dataclass(slots=True)
class _Known:
    """What is computed of one sequence. Position i's token is token_ids[i]."""

    token_ids: list[int] = field(default_factory=list)  # the last may be drafted ones
    num_standing: int = 0  # of these, those that stood at the last call
    block_table: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)  # of its full blocks of tokens that stand


@dataclass(slots=True)
class _Chain:
    """One sequence while it is drafted for."""

    known: _Known
    token_ids: list[int]  # the sequence's and the drafted ones
    num_computed: int
    table: list[int]  # its blocks, and spare ones behind
    path: float = 1.0
    tree: DraftTree = field(default_factory=DraftTree)


class ModelDrafter:
    """A loaded draft model."""

    def __init__(
        self,
        folder: Path,
        *,
        target: ModelConfig,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
        target_folder: Path | None = None,
        min_path: float = 0.02,
    ) -> None:
        """Load `folder`. target_folder: where given, the two tokenizers are compared.

        min_path: paths less likely than this are not drafted. Raises ConfigError on a model with
        another vocabulary, ModelLoadError on one that cannot be loaded.
        """
        model = read_model_config(folder)
        check_same_vocabulary(folder, model, target_folder, target)
        self._max_len = min(max_model_len, model.max_model_len)
        self._vocab_size = model.vocab_size
        self._num_shared = min(model.vocab_size, target.vocab_size)
        self._block_size = block_size
        self._spare_blocks = range(num_blocks, num_blocks + _NUM_SPARE_BLOCKS)
        self._min_path = min_path
        num_all = num_blocks + _NUM_SPARE_BLOCKS
        size = PassSize(num_blocks=num_all, block_size=block_size, max_model_len=self._max_len)
        with torch.inference_mode():
            self._pass = make_pass(folder, model, size, dtype=dtype, device=device)
        self.num_bytes = self._pass.num_bytes
        self.kv_bytes = model.kv_numbers_per_token * dtype.itemsize * num_all * block_size
        self._known: dict[int, _Known] = {}
        self._hash_of: dict[int, int] = {}  # block -> hash of the tokens up to its end

    @torch.inference_mode()
    def draft(
        self,
        requests: list[DraftRequest],
        *,
        depth: int,
        width: int,
        max_nodes: int,
        least_path: float = 0.0,
    ) -> list[DraftTree]:
        """Return a chain of at most `depth` tokens for each request; `width` is not used.

        It ends behind a token whose path is less likely than least_path.

        Empty for a sequence that is longer than the draft model's context, or not caught up with.
        """
        del width
        spare = iter(self._spare_blocks)
        chains = [self._begin(request, depth, spare) for request in requests]
        drafting, logits = self._catch_up(chains)
        for level in range(min(depth, max_nodes)):
            if level > 0:
                logits = self._run([(c, len(c.token_ids)) for c in drafting])
            if logits is None:
                break
            shared = logits[:, : self._num_shared].float()
            confidences, token_ids = shared.softmax(-1).max(-1)
            best = zip(drafting, token_ids.tolist(), confidences.tolist(), strict=True)
            drafting = [
                chain
                for chain, *choice in best
                if self._add(chain, *choice) and chain.path >= least_path
            ]
            if not drafting:
                break
        for request, chain in zip(requests, chains, strict=True):
            self._remember(request, chain)
        return [chain.tree for chain in chains]

    def forget(self, sequence_id: int) -> None:
        """Drop a sequence that has ended or was preempted; its full blocks stay known."""
        self._known.pop(sequence_id, None)

    def _begin(self, request: DraftRequest, depth: int, spare: Iterator[int]) -> _Chain:
        """Find what is computed of a sequence, and the blocks to draft in."""
        known = self._known.get(request.sequence_id)
        if known is None:
            known = self._known[request.sequence_id] = self._recall(request)
        num_computed = self._num_valid(known, request)
        del known.hashes[num_computed // self._block_size :]
        num_wanted = min(len(request.token_ids) + depth - 1, self._max_len)
        num_missing = max(0, -(-num_wanted // self._block_size) - len(request.block_table))
        table = [*request.block_table, *islice(spare, num_missing)]
        return _Chain(known, list(request.token_ids), num_computed, table)

    def _recall(self, request: DraftRequest) -> _Known:
        """Return what is computed of a sequence that was not seen before: blocks of others."""
        known, size = _Known(), self._block_size
        num_full = (len(request.token_ids) - 1) // size
        for index, block in enumerate(request.block_table[:num_full]):
            tokens = request.token_ids[index * size : (index + 1) * size]
            if self._hash_of.get(block) != _next_hash(known.hashes, tokens):
                break
            known.hashes.append(self._hash_of[block])
            known.block_table.append(block)
            known.token_ids += tokens
        known.num_standing = len(known.token_ids)
        return known

    def _num_valid(self, known: _Known, request: DraftRequest) -> int:
        """Return how many first tokens are computed, in the slots of now; never the last one."""
        token_ids = request.token_ids
        limit = min(len(known.token_ids), len(token_ids) - 1)
        valid = min(known.num_standing, limit)
        while valid < limit and known.token_ids[valid] == token_ids[valid]:
            valid += 1
        num_blocks = 0
        for before, now in zip(known.block_table, request.block_table, strict=False):
            if before != now:
                break
            num_blocks += 1
        return min(valid, num_blocks * self._block_size)

    def _catch_up(self, chains: list[_Chain]) -> tuple[list[_Chain], Tensor | None]:
        """Compute what is missing; return the chains that can go on, and their logits."""
        parts: list[tuple[_Chain, int]] = []
        left = _MAX_ROWS
        for chain in chains:
            end = min(len(chain.token_ids), chain.num_computed + left)
            if left and len(chain.token_ids) <= self._room(chain) and self._knows(chain, end):
                parts.append((chain, end))
                left -= end - chain.num_computed
        if not parts:
            return [], None
        return [chain for chain, end in parts if end == len(chain.token_ids)], self._run(parts)

    def _knows(self, chain: _Chain, end: int) -> bool:
        """Whether this model has an embedding for the tokens that are to be computed."""
        return max(chain.token_ids[chain.num_computed : end]) < self._vocab_size

    def _run(self, parts: list[tuple[_Chain, int]]) -> Tensor | None:
        """Compute each chain's tokens up to an end; return the logits of those at their last."""
        size = self._block_size
        batch = StepBatch([], [], [], [])
        for chain, end in parts:
            first, table = chain.num_computed, chain.table[: -(-end // size)]
            asks = _ASKS if end == len(chain.token_ids) else None
            batch.spans.append(Span(len(batch.token_ids), end - first, first, table, -1, asks))
            batch.token_ids += chain.token_ids[first:end]
            batch.positions += range(first, end)
            batch.slots += [table[i // size] * size + i % size for i in range(first, end)]
            for block in table[first // size :]:
                self._hash_of.pop(block, None)
            chain.num_computed = end
        return self._pass.run(batch, rows_to_sample(batch.spans)).logits

    def _add(self, chain: _Chain, token_id: int, confidence: float) -> bool:
        """Draft a token, if it is likely enough; return whether the chain can go on from it."""
        chain.path *= confidence
        if not chain.path >= self._min_path:  # nor what is no number
            return False
        chain.tree.add(token_id, len(chain.tree) - 1, confidence, Source.DRAFT_MODEL)
        chain.token_ids.append(token_id)
        return len(chain.token_ids) <= self._room(chain)

    def _room(self, chain: _Chain) -> int:
        return min(len(chain.table) * self._block_size, self._max_len)

    def _remember(self, request: DraftRequest, chain: _Chain) -> None:
        """Keep what is computed in the sequence's own blocks."""
        known, size = chain.known, self._block_size
        known.block_table = list(request.block_table)
        known.token_ids = chain.token_ids[: min(chain.num_computed, len(known.block_table) * size)]
        known.num_standing = min(len(known.token_ids), len(request.token_ids))
        for index in range(len(known.hashes), known.num_standing // size):
            tokens = known.token_ids[index * size : (index + 1) * size]
            known.hashes.append(_next_hash(known.hashes, tokens))
            self._hash_of[known.block_table[index]] = known.hashes[-1]


def _next_hash(hashes: list[int], token_ids: list[int]) -> int:
    """Return the hash of all tokens up to the end of a block, given those of the blocks before."""
    return hash((hashes[-1] if hashes else 0, *token_ids))
