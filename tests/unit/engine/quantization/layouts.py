"""Words packed bit by bit as the formats' papers and tools say, without the code under test."""

import torch
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which column of eight a word's i-th four bits hold


class Tensors(dict[str, Tensor]):
    """A checkpoint in memory."""

    def read_any(self, name: str) -> Tensor:
        """Return a tensor as it is stored."""
        return self[name]


def words_of(rows: list[list[int]], bits: int) -> Tensor:
    """Pack rows of codes into int32 words, the first code in the lowest bits."""
    per = 32 // bits
    packed = []
    for row in rows:
        words = [row[i : i + per] for i in range(0, len(row), per)]
        packed.append([_signed(sum(c << (bits * i) for i, c in enumerate(w))) for w in words])
    return torch.tensor(packed, dtype=torch.int32)


def awq_words_of(rows: list[list[int]]) -> Tensor:
    """Pack rows of 4-bit codes as AWQ's kernels want the columns."""
    ordered = [
        [row[i + place] for i in range(0, len(row), 8) for place in AWQ_ORDER] for row in rows
    ]
    return words_of(ordered, 4)


def random_codes(rows: int, columns: int, bits: int, seed: int = 0) -> Tensor:
    """Return random codes, uint8 [rows, columns]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, (rows, columns), generator=generator).to(torch.uint8)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
