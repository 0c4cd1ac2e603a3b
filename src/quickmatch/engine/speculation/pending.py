"""What a head has been told of a sequence and has not used yet: its last rows, in order.

Many steps end with no draft of the head, so that the work for each row is put off: here wait the
target's hidden states and the tokens behind them, until the head drafts or too many wait.

Invariant: the rows are of positions start, start + 1, … without a gap.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class PendingRows:
    """One sequence's."""

    start: int  # position of the first row
    block_table: list[int] = field(default_factory=list)
    next_token_ids: list[int] = field(default_factory=list)
    _parts: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.next_token_ids)

    @property
    def end(self) -> int:
        """Position behind the last row."""
        return self.start + len(self.next_token_ids)

    def append(self, features: Tensor, next_token_ids: list[int], block_table: list[int]) -> None:
        """Add the rows that follow. features: [rows, num_aux * target's hidden]."""
        self._parts.append(features)
        self.next_token_ids += next_token_ids
        self.block_table = list(block_table)  # a copy: the sequence's own is emptied at its end

    def take(self, num_rows: int) -> tuple[Tensor, list[int]]:
        """Remove the first rows; return their features and the tokens behind them."""
        features = self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts)
        token_ids = self.next_token_ids[:num_rows]
        self.next_token_ids = self.next_token_ids[num_rows:]
        # A copy: a view of the last row would keep a whole prompt's.
        self._parts = [features[num_rows:].clone()] if self.next_token_ids else []
        self.start += num_rows
        return features[:num_rows], token_ids
