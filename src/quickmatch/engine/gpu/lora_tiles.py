"""A step's rows by their adapters, as lists that the kernels of low rank read.

Knows no triton and no weights. A list's length follows from the number of rows alone where `fixed`
asks for it, which the replay of a step rests on.
"""

from dataclasses import dataclass

from quickmatch.engine.batch import Span
from quickmatch.engine.packing import IntPacker, Packed

FIELDS = 3  # numbers a tile: adapter row (-1: none), start in `rows`, count
FEW, MANY = 16, 64  # rows of a tile: of decodes, and of prompts


@dataclass(frozen=True, slots=True)
class LoraTiles:
    """Rows sorted by adapter, and tiles over them; once the packer has run."""

    fields: Packed  # [num_tiles * FIELDS]
    rows: Packed  # rows of the step, those of an adapter side by side
    num_tiles: int
    size: int  # rows of a tile, at most


def lora_tiles(spans: list[Span], packer: IntPacker, *, fixed: int | None = None) -> LoraTiles:
    """Sort the rows of a step that use adapters into tiles.

    fixed: how many rows the lists are made for, with a tile for each, whatever adapters they use.
    """
    rows_of: dict[int, list[int]] = {}
    for span in spans:
        if span.adapter_row >= 0:
            own = range(span.start, span.start + span.num_tokens)
            rows_of.setdefault(span.adapter_row, []).extend(own)
    longest = max(map(len, rows_of.values()), default=0)
    size = FEW if fixed is not None or longest <= FEW else MANY
    fields: list[int] = []
    flat: list[int] = []
    for adapter, rows in rows_of.items():
        for first in range(0, len(rows), size):
            fields += (adapter, len(flat) + first, min(size, len(rows) - first))
        flat += rows
    if fixed is not None:
        fields += (-1, 0, 0) * (fixed - len(fields) // FIELDS)
        flat += [0] * (fixed - len(flat))
    return LoraTiles(packer.add(fields), packer.add(flat), len(fields) // FIELDS, size)
