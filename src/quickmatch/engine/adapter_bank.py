"""The adapters loaded over one base, by version id, and their part in a step.

An adapter has a row number from load to unload; the scheduler writes it into each span. A row
that is free is given to the next adapter, so the engine unloads only what no running sequence
uses. Loading builds the new adapter beside the old ones and registers it last: a refused one
leaves everything as it was.
"""

import torch

from quickmatch.core.errors import Conflict
from quickmatch.engine.adapters import Adapter
from quickmatch.engine.batch import Span
from quickmatch.engine.lora import (
    GroupedStep,
    LoraStep,
    SingleAdapterStep,
    WideAdapter,
    WideAdapterStep,
)

# Above this many rows x ranks, the wide adapter wastes more than gathering the rows costs.
_WIDE_LIMIT = 1 << 14
# Above this many ranks side by side, it would also double much memory.
_WIDE_MAX_RANK = 1024


class AdapterBank:
    """Loaded adapters; one LoraStep a step where any row uses one."""

    def __init__(self, max_adapters: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._max_adapters = max_adapters
        self._dtype = dtype
        self._device = device
        self._row_of: dict[str, int] = {}
        self._by_row: dict[int, Adapter] = {}
        self._wide: WideAdapter | None = None  # made when first needed; gone on a change

    @property
    def ids(self) -> list[str]:
        """Version ids, in order of loading."""
        return list(self._row_of)

    def row(self, adapter_id: str) -> int:
        """Return the row number that spans carry. Raises KeyError if it is not loaded."""
        return self._row_of[adapter_id]

    def check_room(self, adapter_id: str) -> None:
        """Raise Conflict if the id is taken or no row is free."""
        if adapter_id in self._row_of:
            raise Conflict(f"adapter {adapter_id} is already loaded; unload it first")
        if len(self._row_of) >= self._max_adapters:
            raise Conflict(
                f"{len(self._row_of)} adapters are loaded, as many as max_adapters allows; "
                "unload one or raise max_adapters"
            )

    def add(self, adapter_id: str, adapter: Adapter) -> int:
        """Register an adapter and return its row number."""
        self.check_room(adapter_id)
        row = next(r for r in range(self._max_adapters) if r not in self._by_row)
        self._row_of[adapter_id] = row
        self._by_row[row] = adapter
        self._wide = None
        return row

    def remove(self, adapter_id: str) -> None:
        """Forget an adapter. Raises KeyError if it is not loaded."""
        del self._by_row[self._row_of.pop(adapter_id)]
        self._wide = None

    def step(self, spans: list[Span], num_tokens: int) -> LoraStep | None:
        """Return how this step's rows are adapted; None if no row uses an adapter."""
        used = {span.adapter_row for span in spans}
        if used == {-1}:
            return None
        if len(used) == 1:
            return SingleAdapterStep(self._by_row[used.pop()].layers)
        # At most three fused parts, each of an adapter's full rank, stand side by side.
        wide_rank = 3 * sum(adapter.rank for adapter in self._by_row.values())
        if wide_rank <= _WIDE_MAX_RANK and num_tokens * wide_rank <= _WIDE_LIMIT:
            return self._wide_step(spans)
        return self._grouped_step(spans, used - {-1})

    def _wide_step(self, spans: list[Span]) -> LoraStep:
        if self._wide is None:
            layers = {row: adapter.layers for row, adapter in self._by_row.items()}
            self._wide = WideAdapter(layers, self._device)
        rows = [span.adapter_row for span in spans for _ in range(span.num_tokens)]
        return WideAdapterStep(self._wide, torch.tensor(rows, device=self._device), self._dtype)

    def _grouped_step(self, spans: list[Span], used: set[int]) -> LoraStep:
        parts = []
        for adapter_row in sorted(used):
            ranges = [
                torch.arange(span.start, span.start + span.num_tokens)
                for span in spans
                if span.adapter_row == adapter_row
            ]
            rows = torch.cat(ranges).to(self._device)
            parts.append((rows, self._by_row[adapter_row].layers))
        return GroupedStep(parts)
