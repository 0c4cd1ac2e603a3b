"""Which rows go together in which step, and how they become tensors.

Owns the order of the data. It depends on the lengths, the seed and the epoch alone, so a resumed
job meets the same batches in the same order. Rows of similar length share a batch: padding would
otherwise cost a third of the time on chat data.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quickmatch.tuning.encode import Encoded

_WINDOW_BATCHES = 32  # rows are sorted by length within so many batches, the order stays random
_MULTIPLE = 8  # tokens; lengths are rounded up to it, for the matmul kernels


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows. No attention mask: padding comes last and a causal model never sees it."""

    token_ids: Tensor  # [num_rows, length], int64
    weights: Tensor  # [num_rows, length], float32, of each token as a target
    num_tokens: int  # without padding


def epoch_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Return the row indexes of each batch of an epoch; each row once, the last may be smaller."""
    shuffled = list(range(len(lengths)))
    generator = random.Random(f"{seed}/{epoch}")
    generator.shuffle(shuffled)
    window = batch_size * _WINDOW_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), window):
        near = sorted(shuffled[start : start + window], key=lambda i: lengths[i])
        batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    generator.shuffle(batches)
    return batches


def ordered_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches for evaluation: all rows, longest first, so that memory fails early."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def collate(rows: Sequence[Encoded], pad_id: int, device: torch.device) -> Batch:
    """Pad rows to one length and move them to the device."""
    length = -(-max(len(r.token_ids) for r in rows) // _MULTIPLE) * _MULTIPLE
    token_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    weights = torch.zeros((len(rows), length), dtype=torch.float32)
    for index, row in enumerate(rows):
        token_ids[index, : len(row.token_ids)] = torch.tensor(row.token_ids)
        weights[index, : len(row.weights)] = torch.tensor(row.weights)
    num_tokens = sum(len(r.token_ids) for r in rows)
    return Batch(token_ids.to(device), weights.to(device), num_tokens)
