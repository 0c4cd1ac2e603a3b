"""Starting weights that already copy: a previous-token head and the induction heads that use it.

Copying from the context needs two heads in two layers: one that tells each position which token
came before it, one that looks for the position whose predecessor is the present token and hands
on what stands there. Training from noise finds the pair only after many steps, too many for a
CPU. Here both are written into the starting weights (compare "mimetic initialization",
Trockman & Kolter 2023); training then shapes them, and all the rest, as usual.

Dimension 0 of each embedding starts at the same value, so that a head can make a query which is
the same for all tokens, and so attend by distance alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.base_model.model import Attention, BaseModel

EMBEDDING_STD = 0.25
CONSTANT_SHARE = 0.25  # of an embedding's energy in dimension 0
NUM_PREVIOUS_HEADS = 2
INDUCTION_LAYERS = (1, 2, 3, 4)
NUM_DISTANCE_PAIRS = 10  # rotary pairs, fastest first, that tell distances apart
DISTANCE_SHARPNESS = 40.0
MATCH_GAIN = 3.0
WRITE_GAIN = 0.3
OUTPUT_SCALE = 0.2  # of the final norm, so that the first logits stay moderate


@torch.no_grad()
def write_circuits(model: BaseModel, generator: torch.Generator) -> None:
    """Overwrite some heads of a fresh model. The rest of it keeps its random start.

    Raises ValueError if query heads share key-value heads: the circuits need their own.
    """
    if model.settings.num_kv_heads != model.settings.num_heads:
        raise ValueError(
            f"num_kv_heads is {model.settings.num_kv_heads} but num_heads is "
            f"{model.settings.num_heads}; make them equal"
        )
    width = model.settings.hidden_size
    _write_embeddings(model.embed_tokens.weight, generator)
    model.norm.weight.fill_(OUTPUT_SCALE)
    read_maps, write_maps = [], []
    for head in range(min(NUM_PREVIOUS_HEADS, model.settings.num_heads)):
        read_maps.append(_random_rows(model.settings.head_dim, width, generator))
        write_maps.append(_random_rows(model.settings.head_dim, width, generator))
        _previous_token(model.layers[0].self_attn, head, read_maps[head], write_maps[head])
    for layer in INDUCTION_LAYERS:
        if layer >= model.settings.num_layers:
            continue
        for head in range(len(read_maps)):
            moved = _random_rows(model.settings.head_dim, width, generator)
            attention = model.layers[layer].self_attn
            _induction(attention, head, read_maps[head], write_maps[head], moved)


def _write_embeddings(weight: Tensor, generator: torch.Generator) -> None:
    weight.normal_(std=EMBEDDING_STD, generator=generator)
    energy = weight.shape[1] * EMBEDDING_STD**2
    weight[:, 0] = (energy * CONSTANT_SHARE / (1 - CONSTANT_SHARE)) ** 0.5


def _random_rows(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows [rows, width] that ignore dimension 0."""
    square = torch.linalg.qr(torch.randn(width - 1, width - 1, generator=generator)).Q
    return torch.cat([torch.zeros(rows, 1), square[:rows]], dim=1)


def _rows(attention: Attention, head: int) -> slice:
    return slice(head * attention.head_dim, (head + 1) * attention.head_dim)


def _previous_token(attention: Attention, head: int, read: Tensor, write: Tensor) -> None:
    """Attend one position back, by rotary phase, and write what was read elsewhere."""
    rows, half = _rows(attention, head), attention.head_dim // 2
    pairs = torch.arange(min(NUM_DISTANCE_PAIRS, half))
    angles = 10000.0 ** (-pairs / half)
    constant = (read.shape[1] * CONSTANT_SHARE) ** 0.5  # dimension 0 after the norm
    size = DISTANCE_SHARPNESS**0.5 / constant
    query, key = torch.zeros_like(read), torch.zeros_like(read)
    key[pairs, 0] = size
    query[pairs, 0] = size * angles.cos()
    query[pairs + half, 0] = -size * angles.sin()
    attention.q_proj.weight[rows] = query
    attention.k_proj.weight[rows] = key
    attention.v_proj.weight[rows] = WRITE_GAIN**0.5 * read
    attention.o_proj.weight[:, rows] = WRITE_GAIN**0.5 * write.T


def _induction(attention: Attention, head: int, read: Tensor, write: Tensor, moved: Tensor) -> None:
    """Match the present token with a predecessor, in slow rotary pairs; pass on what is there."""
    rows, half = _rows(attention, head), attention.head_dim // 2
    slow = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, 2 * half)])
    query, key = torch.zeros_like(read), torch.zeros_like(read)
    query[slow] = MATCH_GAIN * read[slow]
    key[slow] = MATCH_GAIN * write[slow]
    attention.q_proj.weight[rows] = query
    attention.k_proj.weight[rows] = key
    attention.v_proj.weight[rows] = WRITE_GAIN**0.5 * moved
    attention.o_proj.weight[:, rows] = WRITE_GAIN**0.5 * moved.T
