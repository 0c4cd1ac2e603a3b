"""The keys and values that a draft looks at: its sequences' own, and those of drafted tokens.

The paged cache never holds what is only drafted. So each draft copies its sequences' keys and
values out once, side by side and padded to the longest, with room behind for the drafted levels;
deeper steps write into that room. A level of all sequences lies at the same columns; a mask hides
the padding before it, and other branches' tokens.

Knows one attention layer and no tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class DraftedKV:
    """Keys and values of one draft call."""

    def __init__(self, keys: Tensor, values: Tensor, lengths: list[int], *, width: int) -> None:
        """keys, values: [kv_heads, sequences, columns, head_dim], the columns enough for all levels
        behind the longest sequence; lengths: of each sequence, in columns; width: rows of each
        sequence in a level.
        """
        self._keys = keys
        self._values = values
        self._num_sequences = len(lengths)
        self.width = width
        self._end = max(lengths)
        self._seen: Tensor | None = None  # [rows, end] 0 where a row sees, -inf where not
        self._own: Tensor | None = None  # [rows, width] the same within the rows' own level
        if width > 1 or self._num_sequences > 1:
            self._seen, self._own = self._masks(lengths)

    def add_level(self, kv: Tensor, parent_rows: Tensor | None) -> None:
        """Store a level's keys and values; from now on each row sees its ancestors and itself.

        kv: [sequences * width, 2 * kv_heads, head_dim]. parent_rows: [sequences * width] rows of
        the level before; None where each row's parent is the row of its own number.
        """
        start, self._end = self._end, self._end + self.width
        by_head = kv.view(self._num_sequences, self.width, *kv.shape[1:]).permute(2, 0, 1, 3)
        num_kv_heads = len(self._keys)
        self._keys[:, :, start : self._end] = by_head[:num_kv_heads]
        self._values[:, :, start : self._end] = by_head[num_kv_heads:]
        if self._seen is not None and self._own is not None:
            seen = self._seen if parent_rows is None else self._seen.index_select(0, parent_rows)
            self._seen = torch.cat((seen, self._own), 1)

    def attend(self, queries: Tensor) -> Tensor:
        """[rows, num_heads, head_dim] of the last level -> [rows, num_heads * head_dim]."""
        num_kv_heads, num_sequences, _, head_dim = self._keys.shape
        num_rows = queries.shape[0]
        rows_each = num_rows // num_sequences
        split = queries.reshape(num_sequences, rows_each, num_kv_heads, -1, head_dim)
        group = split.shape[3]
        # The query heads of a key head are folded into the rows: no copies of the keys.
        folded = split.permute(2, 0, 3, 1, 4).reshape(num_kv_heads, num_sequences, -1, head_dim)
        mask = self._seen
        if mask is not None:
            mask = mask.view(1, num_sequences, 1, rows_each, self._end)
            mask = mask.expand(-1, -1, group, -1, -1).reshape(1, num_sequences, -1, self._end)
        keys, values = self._keys[:, :, : self._end], self._values[:, :, : self._end]
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
        unfolded = out.view(num_kv_heads, num_sequences, group, rows_each, head_dim)
        return unfolded.permute(1, 3, 0, 2, 4).reshape(num_rows, -1)

    def _masks(self, lengths: list[int]) -> tuple[Tensor, Tensor]:
        keys = self._keys
        at = torch.arange(self._end, device=keys.device)
        ends = torch.tensor(lengths, device=keys.device)
        seen = torch.zeros(len(lengths), self._end, dtype=keys.dtype, device=keys.device)
        seen.masked_fill_(at >= ends[:, None], -math.inf)
        own = torch.full((self.width, self.width), -math.inf, dtype=keys.dtype)
        own.fill_diagonal_(0)
        return seen, own.to(keys.device).repeat(len(lengths), 1)
