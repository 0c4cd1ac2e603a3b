"""What lies between a layer's products, in one launch each: placing the heads, and the activation.

As separate operations of torch these are eight launches a layer, of microseconds each, which a
decode step of a small model spends more time on than on its weights.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def place_heads(
    heads, keys, values, slots, cos, sin, norms,
    num_rows, eps, heads_stride, head_stride, angle_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    HAS_NORMS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Norm and rotate a head of BLOCK_M rows; grid (tiles of rows, NUM_HEADS + 2 * NUM_KV_HEADS).

    Queries are changed where they lie; keys and values go into the cache, and only there.
    norms: [NUM_HEADS + NUM_KV_HEADS, HEAD_DIM]. cos, sin: [rows, HEAD_DIM], the sine signed.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    line = tl.program_id(1).to(tl.int64)
    dims = tl.arange(0, BLOCK_D)
    is_row, is_dim = row < num_rows, dims < HEAD_DIM
    mask = is_row[:, None] & is_dim[None, :]
    at = heads + row[:, None] * heads_stride + line * HEAD_DIM
    x = tl.load(at + dims[None, :], mask=mask, other=0.0)
    slot = tl.load(slots + row, mask=is_row, other=0)[:, None] * HEAD_DIM + dims[None, :]
    if line >= NUM_HEADS + NUM_KV_HEADS:
        tl.store(values + (line - NUM_HEADS - NUM_KV_HEADS) * head_stride + slot, x, mask=mask)
        return
    other = (dims + HEAD_DIM // 2) % HEAD_DIM  # each half turns against the other
    mine = x.to(tl.float32)
    swapped = tl.load(at + other[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_NORMS:
        scale = tl.rsqrt(tl.sum(mine * mine, 1) / HEAD_DIM + eps)[:, None]
        own = norms + line * HEAD_DIM
        mine = mine * scale * tl.load(own + dims, mask=is_dim, other=0.0).to(tl.float32)[None, :]
        weight = tl.load(own + other, mask=is_dim, other=0.0).to(tl.float32)
        swapped = swapped * scale * weight[None, :]
    angle = row[:, None] * angle_stride + dims[None, :]
    c = tl.load(cos + angle, mask=mask, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=mask, other=0.0).to(tl.float32)
    turned = (mine * c + swapped * s).to(x.dtype)
    if line < NUM_HEADS:
        tl.debug_barrier()  # other threads of this program read what is now written
        tl.store(at + dims[None, :], turned, mask=mask)
    else:
        tl.store(keys + (line - NUM_HEADS) * head_stride + slot, turned, mask=mask)


@triton.jit
def activate(gate_up, out, size, BLOCK: tl.constexpr):
    """out = silu(gate) * up; gate_up: [rows, 2 * size]; grid (rows, parts of size)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    gate = tl.load(gate_up + row * 2 * size + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + at, mask=mask, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * size + at, result.to(out.dtype.element_ty), mask=mask)
