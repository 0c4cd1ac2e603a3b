"""Which of lora.py's ways a step takes: torch's decoder, and the adapters that it has.

A batch of base rows only takes none, and pays nothing.
"""

import torch

from quickmatch.engine.batch import Span
from quickmatch.engine.lora import (
    GroupedStep,
    LoraLayers,
    LoraStep,
    SingleAdapterStep,
    WideAdapter,
    WideAdapterStep,
)

# Above this many rows x ranks, the wide adapter wastes more than gathering the rows costs.
_WIDE_LIMIT = 1 << 14
# Above this many ranks side by side, it would also double much memory.
_WIDE_MAX_RANK = 1024


class AdapterSteps:
    """Loaded adapters by row; one LoraStep a step where any row uses one."""

    def __init__(self, *, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._layers_of: dict[int, LoraLayers] = {}
        self._wide: WideAdapter | None = None  # made when first needed; gone on a change
        self._wide_rank = 0

    def put(self, row: int, layers: LoraLayers) -> None:
        """Let rows of this number use these layers."""
        self._layers_of[row] = layers
        self._change()

    def drop(self, row: int) -> None:
        """Forget a row's adapter."""
        del self._layers_of[row]
        self._change()

    def _change(self) -> None:
        self._wide = None
        self._wide_rank = sum(map(_rank, self._layers_of.values()))

    def step(self, spans: list[Span], num_tokens: int) -> LoraStep | None:
        """Return how this step's rows are adapted; None if no row uses an adapter."""
        used = {span.adapter_row for span in spans}
        if used == {-1}:
            return None
        if len(used) == 1:
            return SingleAdapterStep(self._layers_of[used.pop()])
        if self._wide_rank <= _WIDE_MAX_RANK and num_tokens * self._wide_rank <= _WIDE_LIMIT:
            return self._wide_step(spans)
        return self._grouped_step(spans, used - {-1})

    def _wide_step(self, spans: list[Span]) -> LoraStep:
        if self._wide is None:
            self._wide = WideAdapter(self._layers_of, self._device)
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
            parts.append((rows, self._layers_of[adapter_row]))
        return GroupedStep(parts)


def _rank(layers: LoraLayers) -> int:
    """Return the most ranks that an adapter has side by side in one place."""
    return max((low.rank for layer in layers for low in layer if low is not None), default=0)
