"""Short spans of a step, batched for attention: decodes, draft trees, last few tokens of prompts.

Owns the plan of a group: whose blocks are gathered, and which query sees which token. Plain lists
until the packer has run; then one mask. Knows no heads and no products.

What a query sees. All tokens before its span, within the window; in the span, a prompt's token
those before it and itself, a draft's node the sequence's last token, its ancestors and itself.
Nodes lie in the order of the tree, not by position: hence flat (query, token) pairs for them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quickmatch.engine.batch import Span
from quickmatch.engine.packing import IntPacker, Packed

SHORT_TOKENS = 32  # spans of at most so many tokens are batched
GROUP_WORK = 768  # queries times blocks that cost about as much as one more group


@dataclass(slots=True)
class SpanGroup:
    """Spans padded to the most queries, and to the most blocks, of any of them."""

    block_ids: Packed  # [num_spans * num_blocks]
    rows: Packed  # [rows of the group] where they stand in the step
    query_rows: Packed  # [num_spans * num_queries] the same; padding repeats a span's last
    unpadded: Packed | None  # [rows of the group] among the padded queries; None: no padding
    low: Packed  # [num_spans * num_queries] first visible token of the gathered ones
    high: Packed  # [num_spans * num_queries] end of the visible tokens, nodes aside
    seen_nodes: Packed | None  # flat indices into [num_spans * num_queries, width]
    num_spans: int
    num_queries: int
    width: int  # gathered tokens a span: whole blocks
    mask: Tensor | None = None  # made with the first layer


def groups_of_like_size(spans: list[Span]) -> list[list[Span]]:
    """One group, unless padding to the largest would more than double the work.

    Work is counted in queries times blocks. A little is padded in any case: a group of its own
    costs ten operations a layer (measured: docs/lab-notes.md).
    """
    if not spans:
        return []
    queries = [span.num_tokens for span in spans]
    blocks = [len(span.block_table) for span in spans]
    work = sum(q * b for q, b in zip(queries, blocks, strict=True))
    if len(spans) * max(queries) * max(blocks) <= 2 * work + GROUP_WORK:
        return [spans]
    groups: dict[tuple[int, int], list[Span]] = {}
    for span, q, b in zip(spans, queries, blocks, strict=True):
        groups.setdefault((q.bit_length(), b.bit_length()), []).append(span)
    return list(groups.values())


@dataclass(slots=True)
class _Lists:
    rows: list[int]
    query_rows: list[int]
    unpadded: list[int]
    lows: list[int]
    highs: list[int]
    seen_nodes: list[int]


def plan_group(
    spans: list[Span], block_size: int, window: int | None, packer: IntPacker
) -> SpanGroup:
    """Plan one group. window: tokens that a query sees, itself included; None: all."""
    firsts = [_first_block(span, block_size, window) for span in spans]
    tables = [
        span.block_table[first : (span.context_len + span.num_tokens - 1) // block_size + 1]
        for span, first in zip(spans, firsts, strict=True)
    ]
    num_queries, num_blocks = max(s.num_tokens for s in spans), max(map(len, tables))
    lists = _Lists([], [], [], [], [], [])
    for number, (span, first) in enumerate(zip(spans, firsts, strict=True)):
        base, context = number * num_queries, span.context_len - first * block_size
        _add_span(lists, span, base, context, num_queries, window)
        if span.tree is not None:
            width = num_blocks * block_size
            at = (base + 1) * width + context + 1
            lists.seen_nodes += _seen_nodes(span.tree.parents, at, width, window)
    # Short rows are filled up with a block of their own, which the mask hides.
    flat = [b for t in tables for b in (*t, *(t[:1] * (num_blocks - len(t))))]
    is_padded = len(lists.rows) < len(lists.query_rows)
    return SpanGroup(
        block_ids=packer.add(flat),
        rows=packer.add(lists.rows),
        query_rows=packer.add(lists.query_rows),
        unpadded=packer.add(lists.unpadded) if is_padded else None,
        low=packer.add(lists.lows),
        high=packer.add(lists.highs),
        seen_nodes=packer.add(lists.seen_nodes) if lists.seen_nodes else None,
        num_spans=len(spans),
        num_queries=num_queries,
        width=num_blocks * block_size,
    )


def _first_block(span: Span, block_size: int, window: int | None) -> int:
    return 0 if window is None else max(0, span.context_len + 1 - window) // block_size


def _add_span(
    lists: _Lists, span: Span, base: int, context: int, num_queries: int, window: int | None
) -> None:
    """Append a span's queries; `context` is how many gathered tokens are before it."""
    end = span.start + span.num_tokens
    padding = num_queries - span.num_tokens
    depths: Sequence[int] = range(span.num_tokens)
    highs = range(context + 1, context + 1 + span.num_tokens)
    if span.tree is not None:
        depths = [0, *span.tree.depths()]
        highs = range(context + 1, context + 2)  # the last token; the rest are pairs
    lows = [0] if window is None else [max(0, context + d + 1 - window) for d in depths]
    lists.rows += range(span.start, end)
    lists.query_rows += [*range(span.start, end), *[end - 1] * padding]
    lists.unpadded += range(base, base + span.num_tokens)
    lists.lows += [*lows, *lows[-1:] * (num_queries - len(lows))]
    lists.highs += [*highs, *[highs[-1]] * (num_queries - len(highs))]


def _seen_nodes(parents: list[int], at: int, width: int, window: int | None) -> list[int]:
    """Return the flat indices of (query, token) for each node's ancestors and the node itself.

    at: index of the pair (node 0, node 0).
    """
    lineages: list[list[int]] = []
    out: list[int] = []
    for node, parent in enumerate(parents):
        lineage = [*lineages[parent], node] if parent >= 0 else [node]
        lineages.append(lineage)
        row = at + node * width
        out += [row + ancestor for ancestor in (lineage if window is None else lineage[-window:])]
    return out


def group_mask(group: SpanGroup, like: Tensor) -> Tensor:
    """Return [num_spans, num_queries, width]: 0 where a query sees, -inf where not."""
    at = torch.arange(group.width, device=like.device)
    hidden = at >= group.high.tensor[:, None]
    if group.seen_nodes is not None:
        hidden.view(-1).index_fill_(0, group.seen_nodes.tensor, False)
    hidden |= at < group.low.tensor[:, None]
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    mask.masked_fill_(hidden, -math.inf)
    return mask.view(group.num_spans, group.num_queries, group.width)
