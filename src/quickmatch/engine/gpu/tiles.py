"""A step's attention as lists of whole numbers, which kernels read: tiles of queries, and blocks.

A tile is some neighbouring queries of one span. Owns what each tile sees; knows no triton, no
heads and no tensors beyond what a packer makes of a list. How long the lists are follows from the
spans' lengths alone, all but the list of blocks: on that the replay of decode steps rests.
"""

from dataclasses import dataclass

from quickmatch.engine.batch import Span
from quickmatch.engine.packing import IntPacker, Packed
from quickmatch.engine.speculation.tree import DraftTree

FIELDS = 8  # numbers a tile: row, count, context, own, first, end, table, and one unused
WORD_BITS = 63
SHORT_TOKENS = 32  # spans of at most so many tokens, and all drafts, are split along their context


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of one kind, once the packer has run."""

    fields: Packed  # [num_tiles * FIELDS]
    num_tiles: int
    queries: int  # of a tile, at most


@dataclass(frozen=True, slots=True)
class ShortTiles(Tiles):
    """Tiles of short spans, with what each of their queries sees."""

    low: Packed  # [num_tiles * queries] first token seen, of those before the span
    seen: Packed  # [num_tiles * queries * num_words] a bit for each token of the span
    num_words: int


class BlockTables:
    """All spans' blocks, one table behind the other; the same for every window."""

    def __init__(self, spans: list[Span], block_size: int, packer: IntPacker) -> None:
        self.starts: list[int] = []
        flat: list[int] = []
        for span in spans:
            self.starts.append(len(flat))
            flat += span.block_table[: (span.context_len + span.num_tokens - 1) // block_size + 1]
        self.blocks = packer.add_last(flat)


def is_short(span: Span) -> bool:
    """Whether a span is attended with its context split; a draft always is, for its branches."""
    return span.tree is not None or span.num_tokens <= SHORT_TOKENS


def chunk_tiles(
    spans: list[tuple[Span, int]], queries: int, window: int | None, packer: IntPacker
) -> Tiles:
    """Cut long spans into tiles. spans: each with where its table starts."""
    fields: list[int] = []
    for span, table in spans:
        for own in range(0, span.num_tokens, queries):
            count = min(queries, span.num_tokens - own)
            end = span.context_len + own + count
            first = _low(span.context_len + own, window)
            fields += (span.start + own, count, span.context_len, own, first, end, table, 0)
    return Tiles(packer.add(fields), len(fields) // FIELDS, queries)


def single_tiles(
    spans: list[tuple[Span, int]], window: int | None, packer: IntPacker
) -> ShortTiles:
    """Return `short_tiles` of spans of one token, in less time: decodes wait for it."""
    fields: list[int] = []
    lows: list[int] = []
    for span, table in spans:
        context = span.context_len
        low = _low(context, window)
        fields += (span.start, 1, context, 0, low, context + 1, table, 0)
        lows.append(low)
    num = len(lows)
    return ShortTiles(packer.add(fields), num, 1, packer.add(lows), packer.add([1] * num), 1)


def short_tiles(
    spans: list[tuple[Span, int]],
    queries: int,
    window: int | None,
    packer: IntPacker,
    *,
    rows: int | None = None,
) -> ShortTiles:
    """Cut short spans and drafts into tiles. spans: each with where its table starts.

    rows: every span gets as many tiles as one of so many rows, those beyond its own empty.
    """
    num_words = max(-(-span.num_tokens // WORD_BITS) for span, _ in spans)
    fields: list[int] = []
    lows: list[int] = []
    words: list[int] = []
    for span, table in spans:
        depths, seen = _sights(span, window)
        low = [_low(span.context_len + depth, window) for depth in depths]
        for own in range(0, rows or span.num_tokens, queries):
            count = max(0, min(queries, span.num_tokens - own))
            end = span.context_len + (span.num_tokens if span.tree else own + count)
            first = min(low[own : own + count], default=end)
            fields += (span.start + own, count, span.context_len, own, first, end, table, 0)
            lows += low[own : own + count] + [0] * (queries - count)
            for bits in seen[own : own + count]:
                words += _words(bits, num_words)
            words += [0] * ((queries - count) * num_words)
    num_tiles = len(fields) // FIELDS
    listed = packer.add(fields), num_tiles, queries, packer.add(lows), packer.add(words)
    return ShortTiles(*listed, num_words)


def _low(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position + 1 - window)


def _words(bits: int, num_words: int) -> list[int]:
    return [bits >> (WORD_BITS * i) & ((1 << WORD_BITS) - 1) for i in range(num_words)]


def _sights(span: Span, window: int | None) -> tuple[list[int], list[int]]:
    """Return how deep each row of a span lies in it, and the bits of the rows that it sees."""
    tree = span.tree or DraftTree(parents=list(range(-1, span.num_tokens - 2)))
    depths = [0, *tree.depths()]
    lineages = [[0]]
    for parent in tree.parents:
        lineages.append([*lineages[parent + 1], len(lineages)])
    kept = [line if window is None else line[-window:] for line in lineages]
    return depths, [sum(1 << row for row in line) for line in kept]
