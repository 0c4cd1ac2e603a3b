"""Attention kernels over the paged cache: short spans split along their context, and chunks.

A program holds a tile of queries times the query heads of one key head ("rows" here), so that each
key is read once for the whole group. It walks over the tokens of one sequence by its block table,
with a running softmax in powers of two and float32 sums.

- `split_attention`: tiles of short spans (decodes, draft trees). The context is cut into
  NUM_SPLITS parts, since one sequence alone would keep only a few processors busy.
- `merge_splits`: one softmax of the parts.
- `chunk_attention`: tiles of long chunks of prompts. Tokens that every row sees need no mask.

What a row of a short span sees: tokens before the span from `low` on, and of the span itself those
whose bit in `seen` is set, whatever tree that is. Pointers into a step's whole numbers are not
specialised on their alignment, which differs from step to step: that would compile anew in the
middle of serving.
"""

import triton
import triton.language as tl

from quickmatch.engine.gpu import tiles as listed

# Fields of a tile, in the order in which tiles.py lists them.
ROW, COUNT, CONTEXT, OWN, FIRST, END, TABLE = (tl.constexpr(i) for i in range(7))
FIELDS = tl.constexpr(listed.FIELDS)
WORD_BITS = tl.constexpr(listed.WORD_BITS)  # of a word of `seen`
_INDICES = ["tiles", "low", "seen", "tables"]


@triton.jit
def _slots(tables, table, tokens, is_read, BLOCK_SIZE: tl.constexpr):
    """Return the slots of `tokens` of a sequence: int64."""
    blocks = tl.load(tables + table + tokens // BLOCK_SIZE, mask=is_read, other=0)
    return blocks * BLOCK_SIZE + tokens % BLOCK_SIZE


@triton.jit
def _load_query(heads, stride, first_row, kv_head, count, dims, HEAD_DIM: tl.constexpr,
                GROUP: tl.constexpr, BLOCK_M: tl.constexpr):  # fmt: skip
    """Return the tile's rows [BLOCK_M, BLOCK_D], and which of them exist."""
    rows = tl.arange(0, BLOCK_M)
    exists = rows // GROUP < count
    at = (first_row + rows // GROUP) * stride + (kv_head * GROUP + rows % GROUP) * HEAD_DIM
    mask = exists[:, None] & (dims < HEAD_DIM)[None, :]
    return tl.load(heads + at[:, None] + dims[None, :], mask=mask, other=0.0), exists


@triton.jit
def _absorb(scores, values, most, total, acc):
    """Take one more tile of scores [rows, tokens], hidden ones -inf, into the running softmax."""
    new = tl.maximum(most, tl.max(scores, 1))
    shift = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen nothing yet
    weights = tl.exp2(scores - shift[:, None])
    fade = tl.exp2(most - shift)
    total = total * fade + tl.sum(weights, 1)
    acc = acc * fade[:, None]
    acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
    return new, total, acc


@triton.jit(do_not_specialize_on_alignment=_INDICES)
def split_attention(
    heads, keys, values, out, parts, stats, tiles, low, seen, tables,
    scale, heads_stride, head_stride,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, QUERIES: tl.constexpr, WORDS: tl.constexpr,
    NUM_SPLITS: tl.constexpr, LEAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend one tile to one part of its context; grid (tiles, key heads, NUM_SPLITS).

    keys, values: [key heads, slots, HEAD_DIM]. With one split, `out` is written; with more,
    parts [tiles * QUERIES, NUM_HEADS, NUM_SPLITS, HEAD_DIM] holds each part's own average and
    stats [the same without HEAD_DIM] the logarithm of its weight. LEAST: tokens worth a part.
    """
    tile, split = tl.program_id(0), tl.program_id(2)
    kv_head = tl.program_id(1).to(tl.int64)
    field = tiles + tile * FIELDS
    count = tl.load(field + COUNT)
    context = tl.load(field + CONTEXT).to(tl.int32)
    first = tl.load(field + FIRST).to(tl.int32) // BLOCK_N * BLOCK_N
    end = tl.load(field + END).to(tl.int32)
    table = tl.load(field + TABLE)
    share = tl.cdiv(tl.cdiv(end - first, NUM_SPLITS), BLOCK_N) * BLOCK_N
    share = tl.maximum(share, LEAST)
    start = first + split * share
    stop = tl.minimum(end, start + share)

    dims = tl.arange(0, BLOCK_D)
    is_dim = dims < HEAD_DIM
    row = tl.load(field + ROW)
    query, exists = _load_query(
        heads, heads_stride, row, kv_head, count, dims, HEAD_DIM, GROUP, BLOCK_M
    )
    rows = tl.arange(0, BLOCK_M)
    asked = tile * QUERIES + rows // GROUP
    lows = tl.load(low + asked, mask=exists, other=0)
    words = tl.load(seen + asked * WORDS, mask=exists, other=0)
    keys += kv_head * head_stride
    values += kv_head * head_stride

    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for at in range(start, stop, BLOCK_N):
        tokens = at + tl.arange(0, BLOCK_N)
        is_read = tokens < stop
        slots = _slots(tables, table, tokens, is_read, BLOCK_SIZE) * HEAD_DIM
        key = tl.load(
            keys + slots[None, :] + dims[:, None],
            mask=is_dim[:, None] & is_read[None, :],
            other=0.0,
        )
        value = tl.load(
            values + slots[:, None] + dims[None, :],
            mask=is_read[:, None] & is_dim[None, :],
            other=0.0,
        )
        own = tokens - context  # place in the span; before it: negative
        place = tl.maximum(own, 0)
        if WORDS == 1:
            bits = words[:, None] >> tl.minimum(place, WORD_BITS - 1)[None, :].to(tl.int64)
        else:
            word = tl.minimum(place // WORD_BITS, WORDS - 1)
            bits = tl.load(
                seen + asked[:, None] * WORDS + word[None, :], mask=exists[:, None], other=0
            ) >> (place % WORD_BITS)[None, :].to(tl.int64)
        is_seen = tl.where(own[None, :] < 0, tokens[None, :] >= lows[:, None], (bits & 1) == 1)
        is_seen = is_seen & is_read[None, :]
        scores = tl.dot(query, key, input_precision="ieee") * scale
        scores = tl.where(is_seen, scores, float("-inf"))
        most, total, acc = _absorb(scores, value, most, total, acc)

    head = kv_head * GROUP + rows % GROUP
    divisor = tl.where(total == 0.0, 1.0, total)
    mask = exists[:, None] & is_dim[None, :]
    if NUM_SPLITS == 1:
        to = ((row + rows // GROUP) * NUM_HEADS + head) * HEAD_DIM
        result = (acc / divisor[:, None]).to(out.dtype.element_ty)
        tl.store(out + to[:, None] + dims[None, :], result, mask=mask)
    else:
        to = (asked * NUM_HEADS + head) * NUM_SPLITS + split
        tl.store(stats + to, most + tl.log2(divisor), mask=exists)
        if start < stop:  # else it has no weight, and what lies there is not read
            average = acc / divisor[:, None]
            tl.store(parts + to[:, None] * HEAD_DIM + dims[None, :], average, mask=mask)


@triton.jit(do_not_specialize_on_alignment=["tiles"])
def merge_splits(
    parts, stats, out, tiles,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr,
    NUM_SPLITS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Average the parts of one query and head by their weights; grid (tiles * QUERIES, heads)."""
    asked, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    field = tiles + asked // QUERIES * FIELDS
    query = asked % QUERIES
    if query < tl.load(field + COUNT):
        splits, dims = tl.arange(0, NUM_SPLITS), tl.arange(0, BLOCK_D)
        at = (asked * NUM_HEADS + head) * NUM_SPLITS + splits
        stat = tl.load(stats + at)
        weights = tl.exp2(stat - tl.max(stat, 0))
        weights = weights / tl.sum(weights, 0)
        mask = (stat > float("-inf"))[:, None] & (dims < HEAD_DIM)[None, :]
        part = tl.load(parts + at[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
        merged = tl.sum(part * weights[:, None], 0).to(out.dtype.element_ty)
        to = ((tl.load(field + ROW) + query) * NUM_HEADS + head) * HEAD_DIM
        tl.store(out + to + dims, merged, mask=dims < HEAD_DIM)


@triton.jit(do_not_specialize_on_alignment=["tiles", "tables"])
def chunk_attention(
    heads, keys, values, out, tiles, tables,
    scale, heads_stride, head_stride, window,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HAS_WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend one tile of a chunk to all that it sees; grid (tiles, key heads).

    window: tokens that a query sees, itself included; read only where HAS_WINDOW.
    """
    # The last tiles of a chunk see most: they are begun first, so that none is left for the end.
    field = tiles + (tl.num_programs(0) - 1 - tl.program_id(0)) * FIELDS
    kv_head = tl.program_id(1).to(tl.int64)
    count = tl.load(field + COUNT)
    first = tl.load(field + FIRST).to(tl.int32) // BLOCK_N * BLOCK_N
    end = tl.load(field + END).to(tl.int32)
    table, row = tl.load(field + TABLE), tl.load(field + ROW)
    position = (tl.load(field + CONTEXT) + tl.load(field + OWN)).to(tl.int32)

    dims = tl.arange(0, BLOCK_D)
    is_dim = dims < HEAD_DIM
    query, exists = _load_query(
        heads, heads_stride, row, kv_head, count, dims, HEAD_DIM, GROUP, BLOCK_M
    )
    rows = tl.arange(0, BLOCK_M)
    positions = position + rows // GROUP
    keys += kv_head * head_stride
    values += kv_head * head_stride

    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    shared = tl.maximum(first, (position + 1) // BLOCK_N * BLOCK_N)  # before it, no row's future
    for at in range(first, shared, BLOCK_N):
        tokens = at + tl.arange(0, BLOCK_N)
        slots = _slots(tables, table, tokens, tokens < end, BLOCK_SIZE) * HEAD_DIM
        key = tl.load(keys + slots[None, :] + dims[:, None], mask=is_dim[:, None], other=0.0)
        scores = tl.dot(query, key, input_precision="ieee") * scale
        if HAS_WINDOW:
            is_near = tokens[None, :] > positions[:, None] - window
            scores = tl.where(is_near, scores, float("-inf"))
        value = tl.load(values + slots[:, None] + dims[None, :], mask=is_dim[None, :], other=0.0)
        most, total, acc = _absorb(scores, value, most, total, acc)
    for at in range(shared, end, BLOCK_N):
        tokens = at + tl.arange(0, BLOCK_N)
        is_read = tokens < end
        slots = _slots(tables, table, tokens, is_read, BLOCK_SIZE) * HEAD_DIM
        mask = is_read[None, :] & is_dim[:, None]
        key = tl.load(keys + slots[None, :] + dims[:, None], mask=mask, other=0.0)
        scores = tl.dot(query, key, input_precision="ieee") * scale
        is_seen = (tokens[None, :] <= positions[:, None]) & is_read[None, :]
        if HAS_WINDOW:
            is_seen = is_seen & (tokens[None, :] > positions[:, None] - window)
        scores = tl.where(is_seen, scores, float("-inf"))
        mask = is_read[:, None] & is_dim[None, :]
        value = tl.load(values + slots[:, None] + dims[None, :], mask=mask, other=0.0)
        most, total, acc = _absorb(scores, value, most, total, acc)

    to = ((row + rows // GROUP) * NUM_HEADS + kv_head * GROUP + rows % GROUP) * HEAD_DIM
    result = (acc / tl.where(total == 0.0, 1.0, total)[:, None]).to(out.dtype.element_ty)
    tl.store(out + to[:, None] + dims[None, :], result, mask=exists[:, None] & is_dim[None, :])
