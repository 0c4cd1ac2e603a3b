"""Codes of 4 or 8 bits in 32-bit words, the lowest bits first, as checkpoints keep them.

Owns only the bits; what the rows and columns are is stored.py's affair. AWQ keeps the eight codes
of a word in an order of its own, which is undone here too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# AWQ's kernels take the columns of a word in the order 0 2 4 6 1 3 5 7; this finds each its place.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def num_words(num_codes: int, bits: int) -> int:
    """Return how many words that many codes take; the last may be part empty."""
    return -(-num_codes * bits // 32)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes [rows, n] into int32 words [rows, num_words(n, bits)].

    bits: 4 or 8. What is left of a row's last word is zeros.
    """
    missing = num_words(codes.shape[1], bits) * (32 // bits) - codes.shape[1]
    padded = F.pad(codes, (0, missing))
    if bits == 4:
        padded = padded[:, 0::2] | padded[:, 1::2] << 4
    return padded.contiguous().view(torch.int32)


def unpack(words: Tensor, bits: int, num_codes: int) -> Tensor:
    """Return the first num_codes codes of each row: int32 [rows, words] -> uint8 [rows, n]."""
    parts = words.contiguous().view(torch.uint8)  # [rows, 4 * words]
    if bits == 4:
        parts = torch.stack((parts & 15, parts >> 4), -1).flatten(1)
    return parts[:, :num_codes].contiguous()


def in_plain_order(codes: Tensor) -> Tensor:
    """Put AWQ's columns, as they were unpacked, into their own order: uint8 [rows, 8 * words]."""
    return codes.view(len(codes), -1, 8)[..., list(_AWQ_PLACES)].flatten(1)
