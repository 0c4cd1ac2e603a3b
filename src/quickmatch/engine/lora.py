"""Adds low-rank adapters to a linear layer's output, row by row of a mixed batch.

For a row with adapter a: y += (x · A_a) · B_a, with B carrying the scaling. Fused layers are
fused here too: the A's of query, key and value lie side by side, their B's on a block diagonal,
so that an adapted layer costs two small multiplications whatever parts it adapts.

How the rows of a batch find their adapter, with nothing done for a batch of base rows only:

- one adapter, all rows: the two multiplications, straight;
- several adapters, few rows (decodes): all loaded adapters side by side as one wide adapter,
  one multiplication down, a mask that keeps each row's own columns (exact zeros elsewhere), one
  multiplication up; the cost does not grow with the number of adapters in the batch;
- several adapters, many rows (prefill): each adapter on its own rows, gathered and scattered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quickmatch.engine.linear import Linear, make_linear

# The groups of layers that share an input, and are fused: indices into an adapter's layers.
QKV, OUT, GATE_UP, DOWN = range(4)
GROUPS = (QKV, OUT, GATE_UP, DOWN)


@dataclass(frozen=True)
class LowRank:
    """One group of one layer: x [rows, in] -> rank -> out. `b` carries the scaling."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]

    @cached_property
    def down(self) -> Linear:
        """`a`, packed when it is first used."""
        return make_linear(self.a)

    @cached_property
    def up(self) -> Linear:
        """`b`, packed when it is first used."""
        return make_linear(self.b)

    @property
    def rank(self) -> int:
        """Columns between the two multiplications."""
        return int(self.a.shape[0])


# [layer][group]; None where the adapter leaves the group alone.
LoraLayers = list[list[LowRank | None]]


class WideAdapter:
    """All loaded adapters side by side.

    `column_sets` are the distinct answers to "whose column is it": [rank] row numbers of the
    adapters. Layers nearly always agree, so that a step needs a mask or two in all.
    """

    def __init__(self, adapters: dict[int, LoraLayers], device: torch.device) -> None:
        num_layers = len(next(iter(adapters.values())))
        self.column_sets: list[Tensor] = []
        self.layers: list[list[tuple[LowRank, int] | None]] = []  # the int: its column set
        self._device = device
        self._set_of: dict[tuple[int, ...], int] = {}
        for index in range(num_layers):
            groups = []
            for group in GROUPS:
                parts = ((row, layers[index][group]) for row, layers in adapters.items())
                groups.append(self._side_by_side([(r, low) for r, low in parts if low]))
            self.layers.append(groups)

    def _side_by_side(self, parts: list[tuple[int, LowRank]]) -> tuple[LowRank, int] | None:
        if not parts:
            return None
        a = torch.cat([low.a for _, low in parts])
        b = torch.cat([low.b for _, low in parts], dim=1)
        columns = tuple(row for row, low in parts for _ in range(low.rank))
        if columns not in self._set_of:
            self._set_of[columns] = len(self.column_sets)
            self.column_sets.append(torch.tensor(columns, device=self._device))
        return LowRank(a, b), self._set_of[columns]


class LoraStep:
    """The adapters of one step's rows; made once a step, used by every layer."""

    def add(self, y: Tensor, x: Tensor, layer: int, group: int) -> Tensor:
        """Return y + the adapters' share; y may be overwritten."""
        raise NotImplementedError


class SingleAdapterStep(LoraStep):
    """Every row uses the same adapter."""

    def __init__(self, layers: LoraLayers) -> None:
        self._layers = layers

    def add(self, y: Tensor, x: Tensor, layer: int, group: int) -> Tensor:
        """See LoraStep.add."""
        low = self._layers[layer][group]
        return y if low is None else low.up.add_to(y, low.down(x))


class WideAdapterStep(LoraStep):
    """Rows of several adapters and of the base, through one wide adapter and a mask."""

    def __init__(self, wide: WideAdapter, row_adapters: Tensor, dtype: torch.dtype) -> None:
        self._wide = wide
        self._masks = [
            (row_adapters[:, None] == columns).to(dtype)  # [num_tokens, rank]
            for columns in wide.column_sets
        ]

    def add(self, y: Tensor, x: Tensor, layer: int, group: int) -> Tensor:
        """See LoraStep.add."""
        found = self._wide.layers[layer][group]
        if found is None:
            return y
        low, columns = found
        return low.up.add_to(y, low.down(x).mul_(self._masks[columns]))


class GroupedStep(LoraStep):
    """Each adapter on its own rows."""

    def __init__(self, parts: Sequence[tuple[Tensor, LoraLayers]]) -> None:
        self._parts = parts

    def add(self, y: Tensor, x: Tensor, layer: int, group: int) -> Tensor:
        """See LoraStep.add."""
        for rows, layers in self._parts:
            low = layers[layer][group]
            if low is not None:
                y.index_add_(0, rows, low.up(low.down(x.index_select(0, rows))))
        return y
