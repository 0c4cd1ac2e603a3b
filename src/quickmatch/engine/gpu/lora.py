"""Adapters on a GPU: where each lies, by tables of addresses, and the step that adds them.

An adapter is not copied beside others; loading one writes its addresses, and a step of any mix of
adapters and ranks is two launches a group of layers (kernels/lora.py). The tables keep their place
in memory until one has to grow, which `version` tells those who replay steps.
"""

import torch
from torch import Tensor

from quickmatch.engine.batch import Span
from quickmatch.engine.gpu.kernels import lora as kernels
from quickmatch.engine.gpu.lora_tiles import FEW, LoraTiles, lora_tiles
from quickmatch.engine.lora import GROUPS, LoraLayers, LoraStep, LowRank
from quickmatch.engine.packing import IntPacker

_LEAST_ROWS = 16  # adapters that the tables begin with
_MAX_BLOCK_RANK = 64
_BLOCK_INPUTS = 128
_SPLIT_INPUTS = 512  # inputs that are worth a part of their own, of few rows
_MAX_SPLITS = 8


class TritonAdapterSteps:
    """Loaded adapters by row; one LoraStep a step where any row uses one."""

    def __init__(self, num_layers: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._num_layers = num_layers
        self._dtype = dtype
        self._device = device
        # What the addresses point to: of each adapter row, a pair for each layer and group.
        self._held: dict[int, list[list[tuple[Tensor, Tensor] | None]]] = {}
        self.version = 0  # of the places and sizes that a step depends on
        self._most_rank = dict.fromkeys(GROUPS, 0)
        self._make_tables(_LEAST_ROWS)

    def _make_tables(self, num_rows: int) -> None:
        shape = (self._num_layers, len(GROUPS), num_rows)
        self.downs, self.ups, self.ranks = (
            torch.zeros(shape, dtype=torch.int64, device=self._device) for _ in range(3)
        )
        for row in self._held:
            self._write(row)

    @torch.inference_mode()
    def put(self, row: int, layers: LoraLayers) -> None:
        """Let rows of this number use these layers."""
        self._held[row] = [[_placed(low) for low in layer] for layer in layers]
        if row >= self.ranks.shape[2]:
            self._make_tables(max(2 * self.ranks.shape[2], row + 1))
            self.version += 1
        else:
            self._write(row)
        self._set_ranks()

    @torch.inference_mode()
    def drop(self, row: int) -> None:
        """Forget a row's adapter."""
        del self._held[row]
        self.ranks[:, :, row] = 0
        self._set_ranks()

    def _write(self, row: int) -> None:
        pairs = [pair for layer in self._held[row] for pair in layer]
        shape = (self._num_layers, len(GROUPS))
        for table, numbers in (
            (self.downs, [0 if pair is None else pair[0].data_ptr() for pair in pairs]),
            (self.ups, [0 if pair is None else pair[1].data_ptr() for pair in pairs]),
            (self.ranks, [0 if pair is None else len(pair[0]) for pair in pairs]),
        ):
            table[:, :, row] = torch.tensor(numbers).view(shape).to(self._device)

    def _set_ranks(self) -> None:
        most = dict(self._most_rank)  # it only grows: with it, steps that were captured go
        for layers in self._held.values():
            for layer in layers:
                for group, pair in zip(GROUPS, layer, strict=True):
                    most[group] = max(most[group], 0 if pair is None else len(pair[0]))
        if most != self._most_rank:
            self._most_rank = most
            self.version += 1

    def most_rank(self, group: int) -> int:
        """Return the largest rank that any adapter has had in a group of layers."""
        return self._most_rank[group]

    def step(self, spans: list[Span], num_tokens: int) -> LoraStep | None:  # noqa: ARG002
        """Return how this step's rows are adapted; None if no row uses an adapter."""
        if all(span.adapter_row < 0 for span in spans):
            return None
        packer = IntPacker()
        step = TritonLoraStep(self, lora_tiles(spans, packer))
        packer.run(self._device)
        return step


class TritonLoraStep(LoraStep):
    """Rows of any adapters and of the base."""

    def __init__(self, adapters: TritonAdapterSteps, tiles: LoraTiles) -> None:
        self._adapters = adapters
        self._tiles = tiles

    def add(self, y: Tensor, x: Tensor, layer: int, group: int) -> Tensor:
        """See LoraStep.add; y is overwritten."""
        adapters, tiles = self._adapters, self._tiles
        most_rank = adapters.most_rank(group)
        if most_rank == 0:
            return y
        num_inputs, num_outputs = x.shape[1], y.shape[1]
        block_rank = min(_MAX_BLOCK_RANK, max(16, 1 << (most_rank - 1).bit_length()))
        is_few = tiles.size == FEW
        splits = _num_splits(num_inputs) if is_few else 1
        num_places = tiles.num_tiles * tiles.size
        hidden = torch.empty(splits, num_places, most_rank, dtype=torch.float32, device=x.device)
        ranks = adapters.ranks[layer, group]
        listed = tiles.fields.tensor, tiles.rows.tensor
        kernels.shrink[tiles.num_tiles, -(-most_rank // block_rank), splits](
            x, hidden, adapters.downs[layer, group], ranks, *listed,
            x.stride(0), num_inputs, most_rank, num_places,
            BLOCK_M=tiles.size, BLOCK_R=block_rank, BLOCK_K=_BLOCK_INPUTS, SPLITS=splits,
            num_warps=4, num_stages=3, enable_fp_fusion=True,
        )  # fmt: skip
        block_out = 64 if is_few else 128
        kernels.expand[tiles.num_tiles, -(-num_outputs // block_out)](
            y, hidden, adapters.ups[layer, group], ranks, *listed,
            num_outputs, most_rank, num_places,
            BLOCK_M=tiles.size, BLOCK_R=block_rank, BLOCK_N=block_out, SPLITS=splits,
            num_warps=4, num_stages=2, enable_fp_fusion=True,
        )  # fmt: skip
        return y


def _num_splits(num_inputs: int) -> int:
    wanted = max(1, min(_MAX_SPLITS, num_inputs // _SPLIT_INPUTS))
    return 1 << (wanted.bit_length() - 1)


def _placed(low: LowRank | None) -> tuple[Tensor, Tensor] | None:
    """Return A [rank, in] and B turned to [rank, out], so that kernels read both along rows."""
    return None if low is None else (low.a.contiguous(), low.b.t().contiguous())
