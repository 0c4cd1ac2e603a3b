"""The product of rows with a weight in few bits: x · Wᵀ, the weight widened tile by tile.

Few rows read each weight once, from memory that is the bound; many rows reuse a tile. One kernel
does both, in different shapes. Sums are float32; rows and widened weights have the rows' format.
"""

import triton
import triton.language as tl

# From INT4 on, two codes lie in a byte.
INT8, FP8, INT4, MXFP4 = (tl.constexpr(i) for i in range(4))


@triton.jit
def _numbers(codes, KIND: tl.constexpr):
    """Return what codes stand for before zero points and scales, float32."""
    if KIND == MXFP4:
        magnitude, exponent = (codes & 1).to(tl.int32), ((codes >> 1) & 3).to(tl.int32)
        # 0, 1, 2, 3, 4, 6, 8, 12 halves: below an exponent of 1 there is no leading one.
        grown = (magnitude + 2) << tl.maximum(exponent - 1, 0)
        value = tl.where(exponent == 0, magnitude, grown)
        number = tl.where(codes >= 8, -value, value).to(tl.float32)
    else:
        number = codes.to(tl.float32)
    return number


@triton.jit
def _by_group(of, rows, is_row, at, num_groups, GROUP: tl.constexpr, BLOCK: tl.constexpr,
              BLOCK_N: tl.constexpr):  # fmt: skip
    """Return a row's number of its group for each of BLOCK columns from `at`, or for all at once.

    of: [rows, num_groups]. GROUP and BLOCK count columns of the same kind.
    """
    if GROUP >= BLOCK:
        spread = tl.load(of + rows * num_groups + at // GROUP, mask=is_row, other=0)[:, None]
    else:
        groups = at // GROUP + tl.arange(0, BLOCK // GROUP)
        mask = is_row[:, None] & (groups < num_groups)[None, :]
        found = tl.load(of + rows[:, None] * num_groups + groups[None, :], mask=mask, other=0)
        widened = tl.broadcast_to(found[:, :, None], (BLOCK_N, BLOCK // GROUP, GROUP))
        spread = tl.reshape(widened, (BLOCK_N, BLOCK))
    return spread


@triton.jit(do_not_specialize=["num_rows"])
def product(
    x, codes, scales, zeros, bias, out,
    num_rows, num_inputs, num_outputs, num_groups, x_stride, unit,
    KIND: tl.constexpr, GROUP: tl.constexpr, ZERO: tl.constexpr, HAS_ZEROS: tl.constexpr,
    HAS_BIAS: tl.constexpr, ADDS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out [rows, outputs] = x · Wᵀ + bias, or that added to it where ADDS.

    codes: [outputs, inputs], two in a byte where they have 4 bits, the first in the lower half;
    scales, zeros: [outputs, num_groups]. A weight is (code - zero) * scale * unit, with ZERO where
    there are no zeros. GROUP: inputs that share a scale; 0: all of a row. Grid (tiles of rows,
    tiles of outputs): programs beside one another share weights.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    to = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row, is_to = row < num_rows, to < num_outputs
    rows, outs = row.to(tl.int64), to.to(tl.int64)
    PACKED: tl.constexpr = 2 if KIND >= INT4 else 1
    COLUMNS: tl.constexpr = BLOCK_K // PACKED
    num_columns = num_inputs // PACKED
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if GROUP == 0:
        scale = tl.load(scales + outs, mask=is_to, other=0.0).to(tl.float32)
        if HAS_ZEROS:
            zero = tl.load(zeros + outs, mask=is_to, other=0).to(tl.float32)[:, None]
    for at in range(0, num_columns, COLUMNS):
        column = at + tl.arange(0, COLUMNS)
        mask = is_to[:, None] & (column < num_columns)[None, :]
        read = tl.load(codes + outs[:, None] * num_columns + column[None, :], mask=mask, other=0)
        k = at * PACKED + tl.arange(0, BLOCK_K)
        taken = tl.load(
            x + rows[:, None] * x_stride + k[None, :],
            mask=is_row[:, None] & (k < num_inputs)[None, :],
            other=0.0,
        )
        if GROUP > 0:
            factor = _by_group(
                scales, outs, is_to, at, num_groups, GROUP // PACKED, COLUMNS, BLOCK_N
            ).to(tl.float32)
            if HAS_ZEROS:
                zero = _by_group(
                    zeros, outs, is_to, at, num_groups, GROUP // PACKED, COLUMNS, BLOCK_N
                ).to(tl.float32)
        if KIND == FP8:
            weight = read.to(tl.float8e4nv, bitcast=True).to(taken.dtype)
            acc = tl.dot(taken, tl.trans(weight), acc, input_precision="ieee")
        elif PACKED == 1:
            weight = _numbers(read, KIND) - (zero if HAS_ZEROS else ZERO)
            if GROUP > 0:
                weight = weight * factor
            acc = tl.dot(taken, tl.trans(weight.to(taken.dtype)), acc, input_precision="ieee")
        else:
            first = _numbers(read & 15, KIND) - (zero if HAS_ZEROS else ZERO)
            second = _numbers(read >> 4, KIND) - (zero if HAS_ZEROS else ZERO)
            if GROUP > 0:
                first, second = first * factor, second * factor
            even, odd = tl.split(tl.reshape(taken, (BLOCK_M, COLUMNS, 2)))
            acc = tl.dot(even, tl.trans(first.to(taken.dtype)), acc, input_precision="ieee")
            acc = tl.dot(odd, tl.trans(second.to(taken.dtype)), acc, input_precision="ieee")
    if GROUP == 0:
        acc = acc * scale[None, :]
    acc = acc * unit
    if HAS_BIAS:
        acc += tl.load(bias + outs, mask=is_to, other=0.0).to(tl.float32)[None, :]
    place = out + rows[:, None] * num_outputs + outs[None, :]
    mask = is_row[:, None] & is_to[None, :]
    if ADDS:
        acc += tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, acc.to(out.dtype.element_ty), mask=mask)
