"""The drafters that run a model: trained heads, one an adapter at most, and a small draft model.

Owns which of them drafts for which sequence, and feeds them what the target computed. They live
beside the target, in its memory and between its steps. Knows no queue and no controller.

A sequence is drafted for by the head of its adapter, else by the base model's head, else by the
draft model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from quickmatch.core.errors import ConfigError
from quickmatch.engine.batch import Sampled, Span, StepBatch
from quickmatch.engine.speculation.kept_rows import DraftRequest, KeptRows
from quickmatch.engine.speculation.tree import DraftTree

BASE = ""


class Drafter(Protocol):
    """What a head and a draft model have in common."""

    def draft(
        self,
        requests: list[DraftRequest],
        *,
        depth: int,
        width: int,
        max_nodes: int,
        least_path: float,
    ) -> list[DraftTree]: ...

    def forget(self, sequence_id: int) -> None: ...


class Head(Drafter, Protocol):
    """A drafter on the target's hidden states."""

    aux_layers: tuple[int, ...]

    def observe(self, kept: list[KeptRows], aux: list[Tensor]) -> None: ...


class SmallModel(Drafter, Protocol):
    """A model with the target's tokenizer and a cache over the target's slots.

    It is told of no steps: what it has missed it reads from the tokens when it drafts.
    """


@dataclass(slots=True)
class _Loaded:
    draft: str  # version id
    head: Head


class ModelDrafters:
    """All of one engine's. Empty at first; then a step costs nothing more than without it."""

    def __init__(self, draft_model: SmallModel | None = None) -> None:
        self._heads: dict[str, _Loaded] = {}  # by adapter version id
        self._draft_model = draft_model
        self._adapter_of_row: dict[int, str] = {-1: BASE}
        self.aux_layers: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._heads) or self._draft_model is not None

    @property
    def versions(self) -> dict[str, str]:
        """Version ids of the loaded heads, by adapter version id."""
        return {adapter: loaded.draft for adapter, loaded in self._heads.items()}

    def put_head(self, adapter: str, adapter_row: int | None, draft: str, head: Head) -> None:
        """Let a head draft for an adapter (BASE: for the base model) from the next step on.

        adapter_row: None while the adapter's weights are on disk only; `set_row` tells when not.
        """
        self._heads[adapter] = _Loaded(draft, head)
        if adapter_row is not None:
            self._adapter_of_row[adapter_row] = adapter
        self._choose_aux_layers()

    def set_row(self, adapter: str, adapter_row: int) -> None:
        """An adapter has been loaded, into this row; its head, if it has one, goes on."""
        if adapter in self._heads:
            self._adapter_of_row[adapter_row] = adapter

    def forget_row(self, adapter_row: int) -> None:
        """An adapter's weights have gone, and may come back; its head stays."""
        self._adapter_of_row.pop(adapter_row, None)

    def drop_head(self, adapter: str) -> None:
        """Forget an adapter's head. Raises ConfigError if there is none."""
        if adapter not in self._heads:
            loaded = ", ".join(repr(a) for a in self._heads) or "none"
            raise ConfigError(f"no head is loaded for adapter {adapter!r}; loaded for: {loaded}")
        del self._heads[adapter]
        self._adapter_of_row = {r: a for r, a in self._adapter_of_row.items() if a != adapter}
        self._adapter_of_row[-1] = BASE
        self._choose_aux_layers()

    def drafter(self, adapter_row: int) -> Drafter | None:
        """Return who drafts for sequences of this adapter."""
        head = self._head(adapter_row)
        return head if head is not None else self._draft_model

    def can_draft(self, adapter_row: int, *, is_watched: bool) -> bool:
        """Whether anybody can draft for a sequence; a head can for one that it was told of."""
        if self._head(adapter_row) is not None:
            return is_watched
        return self._draft_model is not None

    def draft(
        self,
        requests: Sequence[DraftRequest],
        *,
        depth: int,
        width: int,
        max_nodes: int,
        least_path: float = 0.0,
    ) -> list[DraftTree]:
        """Return a tree for each request, empty where nobody drafts.

        least_path: paths less likely than this are not gone on from.
        """
        trees = [DraftTree() for _ in requests]
        by_drafter: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            by_drafter.setdefault(id(self.drafter(request.adapter_row)), []).append(index)
        for indices in by_drafter.values():
            drafter = self.drafter(requests[indices[0]].adapter_row)
            if drafter is None:
                continue
            chosen = [requests[i] for i in indices]
            made = drafter.draft(
                chosen, depth=depth, width=width, max_nodes=max_nodes, least_path=least_path
            )
            for index, tree in zip(indices, made, strict=True):
                trees[index] = tree
        return trees

    def observe(self, batch: StepBatch, sampled: list[Sampled | None], aux: list[Tensor]) -> None:
        """Take in a step that the target has run. aux: by `aux_layers`, [num_tokens, hidden]."""
        if not self._heads:
            return
        kept = [
            kept_rows(batch, span, chosen)
            for span, chosen in zip(batch.spans, sampled, strict=True)
            if span.is_watched
        ]
        by_layer = dict(zip(self.aux_layers, aux, strict=True))
        for loaded in self._heads.values():
            own = [k for k in kept if self._head(k.adapter_row) is loaded.head]
            if own:
                layers = [by_layer[layer] for layer in loaded.head.aux_layers]
                loaded.head.observe(own, layers)

    def forget(self, sequence_id: int) -> None:
        """Forget a sequence that has ended or was preempted."""
        for loaded in self._heads.values():
            loaded.head.forget(sequence_id)
        if self._draft_model is not None:
            self._draft_model.forget(sequence_id)

    def _head(self, adapter_row: int) -> Head | None:
        adapter = self._adapter_of_row.get(adapter_row, BASE)
        loaded = self._heads.get(adapter) or self._heads.get(BASE)
        return None if loaded is None else loaded.head

    def _choose_aux_layers(self) -> None:
        layers = {layer for h in self._heads.values() for layer in h.head.aux_layers}
        self.aux_layers = tuple(sorted(layers))


def kept_rows(batch: StepBatch, span: Span, sampled: Sampled | None) -> KeptRows:
    """Return the rows of a span that became part of its sequence, and the token after each."""
    end = span.start + span.num_tokens
    if sampled is not None and span.tree is not None:
        rows = [span.start, *(span.start + 1 + node for node in sampled.accepted)]
        following = sampled.token_ids
    else:
        rows = list(range(span.start, end))
        last = span.next_token_id if sampled is None else sampled.token_ids[0]
        following = [*batch.token_ids[span.start + 1 : end], last]
    return KeptRows(
        sequence_id=span.sequence_id,
        start=span.context_len,
        rows=rows,
        next_token_ids=following,
        block_table=span.block_table,
        adapter_row=span.adapter_row,
    )
