"""Two products of low rank for rows of many adapters: down to the rank, and up again.

A tile is some rows of one adapter. Adapters stay where they were loaded: tables of addresses, by
adapter row, say where. A tile without an adapter (-1) returns at once, and rows without one are in
no tile.
"""

import triton
import triton.language as tl

from quickmatch.engine.gpu import lora_tiles as listed

FIELDS = tl.constexpr(listed.FIELDS)
ADAPTER, START, COUNT = (tl.constexpr(i) for i in range(3))


@triton.jit(do_not_specialize_on_alignment=["tiles", "rows"])
def shrink(
    x, hidden, downs, ranks, tiles, rows,
    x_stride, num_inputs, most_rank, num_places,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """hidden[split, place] = a share of x[row] · Aᵀ; grid (tiles, parts of the rank, SPLITS).

    downs: addresses of A [rank, num_inputs]. hidden: [SPLITS, num_places, most_rank], float32;
    what lies beyond an adapter's own rank is not written.
    """
    tile, part, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    adapter = tl.load(tiles + tile * FIELDS + ADAPTER)
    if adapter < 0:
        return
    rank = tl.load(ranks + adapter)
    if part * BLOCK_R >= rank:
        return
    count = tl.load(tiles + tile * FIELDS + COUNT)
    place = tl.arange(0, BLOCK_M)
    is_row = place < count
    row = tl.load(rows + tl.load(tiles + tile * FIELDS + START) + place, mask=is_row, other=0)
    low = part * BLOCK_R + tl.arange(0, BLOCK_R)
    is_low = low < rank
    down = tl.load(downs + adapter).to(tl.pointer_type(x.dtype.element_ty))
    down = tl.multiple_of(down, 16)
    share = tl.cdiv(tl.cdiv(num_inputs, SPLITS), BLOCK_K) * BLOCK_K
    stop = tl.minimum(num_inputs, (split + 1) * share)
    acc = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for at in range(split * share, stop, BLOCK_K):
        k = at + tl.arange(0, BLOCK_K)
        is_k = k < stop
        taken = tl.load(
            x + row[:, None] * x_stride + k[None, :],
            mask=is_row[:, None] & is_k[None, :],
            other=0.0,
        )
        weight = tl.load(
            down + low[None, :] * num_inputs + k[:, None],
            mask=is_k[:, None] & is_low[None, :],
            other=0.0,
        )
        acc = tl.dot(taken, weight, acc, input_precision="ieee")
    to = (split.to(tl.int64) * num_places + tile * BLOCK_M + place) * most_rank
    tl.store(hidden + to[:, None] + low[None, :], acc, mask=is_row[:, None] & is_low[None, :])


@triton.jit(do_not_specialize_on_alignment=["tiles", "rows"])
def expand(
    y, hidden, ups, ranks, tiles, rows,
    num_outputs, most_rank, num_places,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """y[row] += hidden[place] · B, the splits summed; grid (tiles, parts of the outputs).

    ups: addresses of B [rank, num_outputs], which carries the scaling. y: [rows, num_outputs].
    """
    tile = tl.program_id(0)
    adapter = tl.load(tiles + tile * FIELDS + ADAPTER)
    if adapter < 0:
        return
    rank = tl.load(ranks + adapter)
    if rank == 0:
        return
    count = tl.load(tiles + tile * FIELDS + COUNT)
    place = tl.arange(0, BLOCK_M)
    is_row = place < count
    row = tl.load(rows + tl.load(tiles + tile * FIELDS + START) + place, mask=is_row, other=0)
    out = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_out = out < num_outputs
    up = tl.load(ups + adapter).to(tl.pointer_type(y.dtype.element_ty))
    up = tl.multiple_of(up, 16)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for at in range(0, rank.to(tl.int32), BLOCK_R):
        low = at + tl.arange(0, BLOCK_R)
        is_low = low < rank
        mask = is_row[:, None] & is_low[None, :]
        taken = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
        for split in tl.static_range(SPLITS):
            of = (split * num_places + tile * BLOCK_M + place).to(tl.int64) * most_rank
            taken += tl.load(hidden + of[:, None] + low[None, :], mask=mask, other=0.0)
        weight = tl.load(
            up + low[:, None] * num_outputs + out[None, :],
            mask=is_low[:, None] & is_out[None, :],
            other=0.0,
        )
        acc = tl.dot(taken.to(weight.dtype), weight, acc, input_precision="ieee")
    to = y + row[:, None] * num_outputs + out[None, :]
    mask = is_row[:, None] & is_out[None, :]
    sum_ = tl.load(to, mask=mask, other=0.0).to(tl.float32) + acc
    tl.store(to, sum_.to(y.dtype.element_ty), mask=mask)
