"""Drafts with a trained head: one layer over the target's hidden states, run ahead of the target.

Owns the head's keys and values, which lie at the target's slots in a cache of its own, so that
sequences that share a prefix share them; and, for each sequence, the rows that wait to be used
(pending.py). The arithmetic is head_layer.py's, the shape of the tree beams.py's.

A draft is: the pending rows of every sequence in one pass, which writes their keys and values and
scores the first level; then a pass for each deeper level over the beams' rows, in which the head's
own output stands for the hidden states that the target has yet to compute.

Invariant: the cache holds only rows of tokens that stand; what is drafted lies in DraftedKV. So a
draft that is thrown away leaves no trace. Rows that the head was never told of (of a sequence that
ran when it was loaded) are what lies at their slots: the draft is then worse, never the answer.
Prefixes are shared only where it knows them (prefixes.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.packing import IntPacker, Packed
from quickmatch.engine.rope import RotaryTable, rotate_
from quickmatch.engine.speculation.beams import Beams
from quickmatch.engine.speculation.drafted_kv import DraftedKV
from quickmatch.engine.speculation.head_config import (
    EMBEDDING,
    HeadConfig,
    check_fits,
    default_aux_layers,
)
from quickmatch.engine.speculation.head_layer import HeadLayer
from quickmatch.engine.speculation.kept_rows import DraftRequest, KeptRows
from quickmatch.engine.speculation.pending import PendingRows
from quickmatch.engine.speculation.tree import DraftTree, Source

_MAX_PENDING = 64  # rows of a sequence that may wait


@dataclass(slots=True)
class _Rows:
    """Rows whose keys and values are to be stored; the whole numbers are with a packer."""

    g: Tensor  # [rows, hidden]
    token_ids: Packed
    positions: Packed
    slots: Packed


@dataclass(slots=True)
class _Deeper:
    """What the levels behind the first share."""

    kv: DraftedKV
    cos: Tensor  # [levels * rows, 1, head_dim], level by level
    sin: Tensor


class HeadDrafter:
    """One loaded head. Raises ModelLoadError from the constructor if it is another target's."""

    def __init__(
        self,
        config: HeadConfig,
        tensors: Mapping[str, Tensor],
        *,
        embedding: Tensor,
        model: ModelConfig,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
        min_path: float = 0.02,
    ) -> None:
        """config, tensors: as `read_head` gives them. embedding: the target's, [vocab, hidden].

        min_path: paths less likely than this are not drafted.
        """
        check_fits(config, model, has_embedding=EMBEDDING in tensors)
        self.aux_layers = config.aux_layers or default_aux_layers(model.num_layers)
        self._layer = HeadLayer(config, tensors, embedding=embedding, dtype=dtype, device=device)
        self.num_bytes = self._layer.num_bytes
        # On CPUs attention of few rows is some times faster in float32 than in bfloat16.
        kv_dtype = torch.float32 if device.type == "cpu" else dtype
        self._cache = KVCache(config.layer, num_blocks, block_size, dtype=kv_dtype, device=device)
        self._rotary = RotaryTable(
            config.rope, config.head_dim, max_model_len, dtype=kv_dtype, device=device
        )
        self._num_heads = config.num_heads
        self._num_kv_heads = config.num_kv_heads
        targets = torch.arange(config.draft_vocab_size) + tensors["d2t"]
        self._target_ids: list[int] = targets.tolist()
        self._dtype, self._kv_dtype, self._device = dtype, kv_dtype, device
        self._max_position = max_model_len - 1
        self._min_path = min_path
        self._pending: dict[int, PendingRows] = {}

    # ---- what the target computed

    @torch.inference_mode()
    def observe(self, kept: list[KeptRows], aux: list[Tensor]) -> None:
        """Take in the rows of a step that became part of their sequences.

        aux: the hidden states entering `aux_layers`, each [num_tokens, target's hidden], of the
        step's flattened batch.
        """
        kept = [rows for rows in kept if rows.sequence_id >= 0]  # a warm-up is nobody's
        if not kept:
            return
        features = torch.cat(aux, -1)
        picked = [row for rows in kept for row in rows.rows]
        if picked != list(range(len(features))):
            features = features.index_select(0, torch.tensor(picked, device=self._device))
        first = 0
        for rows in kept:
            own = features[first : first + len(rows.rows)]
            # A copy, where a view would keep a whole prompt's alive.
            self._append(rows, own.clone() if len(features) > _MAX_PENDING else own)
            first += len(rows.rows)
        waiting = [self._pending[rows.sequence_id] for rows in kept]
        full = [pending for pending in waiting if len(pending) > _MAX_PENDING]
        if full:
            # Not the last one, which a draft starts from.
            self._store([(pending, len(pending) - 1) for pending in full])

    @torch.inference_mode()
    def forget(self, sequence_id: int) -> None:
        """Drop a sequence that has ended or was preempted.

        What waits is stored first: other sequences may reuse its blocks as a prefix.
        """
        pending = self._pending.pop(sequence_id, None)
        if pending is not None and len(pending):
            self._store([(pending, len(pending))])

    def _append(self, rows: KeptRows, features: Tensor) -> None:
        pending = self._pending.get(rows.sequence_id)
        if pending is None or pending.end != rows.start:
            pending = self._pending[rows.sequence_id] = PendingRows(rows.start)
        pending.append(features, rows.next_token_ids, rows.block_table)

    def _store(self, parts: list[tuple[PendingRows, int]]) -> None:
        """Store keys and values of the first so many pending rows of each sequence."""
        packer = IntPacker()
        rows = self._take(parts, packer)
        packer.run(self._device)
        cos, sin = self._rotary.at(rows.positions.tensor)
        heads, _ = self._project(rows.g, rows.token_ids.tensor, cos, sin)
        self._cache.write(0, rows.slots.tensor, heads[:, self._num_heads :])

    def _take(self, parts: list[tuple[PendingRows, int]], packer: IntPacker) -> _Rows:
        """Take the first so many pending rows of each sequence."""
        size = self._cache.block_size
        features: list[Tensor] = []
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for pending, num_rows in parts:
            table = pending.block_table
            own = range(pending.start, pending.start + num_rows)
            positions += own
            slots += [table[p // size] * size + p % size for p in own]
            taken, following = pending.take(num_rows)
            features.append(taken)
            token_ids += following
        g = self._layer.fuse(features[0] if len(features) == 1 else torch.cat(features))
        return _Rows(g, packer.add(token_ids), packer.add(positions), packer.add(slots))

    # ---- drafting

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
        """Return a tree for each request: at most `depth` levels, grown `width` beams wide.

        Paths less likely than least_path are not gone on from. Of the nodes looked at the likeliest
        max_nodes are kept. The tree is empty for a sequence whose last row was not observed.
        """
        ready = [index for index, request in enumerate(requests) if self._is_ready(request)]
        trees = [DraftTree() for _ in requests]
        if not ready:
            return trees
        width = min(width, len(self._target_ids))
        beams = Beams(
            len(ready),
            width=width,
            min_path=self._min_path,
            source=Source.HEAD,
            least_path=least_path,
        )
        m, deeper = self._first_level([requests[index] for index in ready], depth, width)
        for level in range(depth):
            if level > 0:
                m = self._next_level(level, m, beams, deeper)
            confidences, draft_ids = self._layer.score(m).float().softmax(-1).topk(width)
            token_ids = [[self._target_ids[i] for i in row] for row in draft_ids.tolist()]
            if not beams.grow(token_ids, confidences.tolist()):
                break
        for index, tree in zip(ready, beams.best(max_nodes), strict=True):
            trees[index] = tree
        return trees

    def _is_ready(self, request: DraftRequest) -> bool:
        """Whether the row before the last token waits; its output scores the first level."""
        pending = self._pending.get(request.sequence_id)
        return (
            pending is not None
            and len(pending) > 0
            and pending.end == len(request.token_ids) - 1
            and pending.next_token_ids[-1] == request.token_ids[-1]
        )

    def _first_level(
        self, requests: list[DraftRequest], depth: int, width: int
    ) -> tuple[Tensor, _Deeper]:
        """Run all pending rows; return the last one's m of each sequence, [sequences, hidden]."""
        packer = IntPacker()
        waiting = [self._pending[request.sequence_id] for request in requests]
        counts = [len(pending) for pending in waiting]
        rows = self._take(list(zip(waiting, counts, strict=True)), packer)
        lengths = [pending.start for pending in waiting]  # all are taken: rows that exist
        block_ids = packer.add(self._tables(requests, max(lengths) + (depth - 1) * width))
        last_rows = packer.add([end - 1 for end in accumulate(counts)])
        behind = packer.add(self._positions_behind(lengths, depth, width))
        packer.run(self._device)
        cos, sin = self._rotary.at(rows.positions.tensor)
        heads, residual = self._project(rows.g, rows.token_ids.tensor, cos, sin)
        self._cache.write(0, rows.slots.tensor, heads[:, self._num_heads :])
        keys, values = self._cache.gather(0, block_ids.tensor, len(requests))
        kv = DraftedKV(keys, values, lengths, width=width)
        if len(heads) > len(requests):
            heads = heads.index_select(0, last_rows.tensor)
            residual = residual.index_select(0, last_rows.tensor)
        return self._finish(residual, heads, kv), _Deeper(kv, *self._rotary.at(behind.tensor))

    def _next_level(self, level: int, m: Tensor, beams: Beams, deeper: _Deeper) -> Tensor:
        """Run a level's rows, for which the m of their parents stands in for g."""
        numbers = torch.tensor([beams.token_ids, beams.parent_rows], device=self._device)
        num_rows = numbers.shape[1]
        parent_rows = None if deeper.kv.width == 1 else numbers[1]
        g = m if parent_rows is None else m.index_select(0, parent_rows)
        own = slice((level - 1) * num_rows, level * num_rows)
        heads, residual = self._project(g, numbers[0], deeper.cos[own], deeper.sin[own])
        deeper.kv.add_level(heads[:, self._num_heads :], parent_rows)
        return self._finish(residual, heads, deeper.kv)

    def _project(
        self, g: Tensor, token_ids: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return queries, keys and values as attention reads them, and the residual."""
        heads, residual = self._layer.project(g, token_ids)
        heads = heads.to(self._kv_dtype)
        rotate_(heads[:, : self._num_heads + self._num_kv_heads], cos, sin)
        return heads, residual

    def _finish(self, residual: Tensor, heads: Tensor, kv: DraftedKV) -> Tensor:
        attended = kv.attend(heads[:, : self._num_heads])
        return self._layer.finish(residual, attended.to(self._dtype))

    def _tables(self, requests: list[DraftRequest], num_columns: int) -> list[int]:
        """Return equally many blocks of each sequence; where it has too few, its first again."""
        num_blocks = -(-num_columns // self._cache.block_size)
        flat: list[int] = []
        for request in requests:
            table = request.block_table[:num_blocks]
            flat += table + table[:1] * (num_blocks - len(table))
        return flat

    def _positions_behind(self, lengths: list[int], depth: int, width: int) -> list[int]:
        """Return the positions of all deeper rows, level by level."""
        return [
            min(length - 1 + level, self._max_position)
            for level in range(1, depth)
            for length in lengths
            for _ in range(width)
        ]
