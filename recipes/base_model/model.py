"""The network: a Llama with parameter names as Hugging Face spells them.

Written out because it is trained on a CPU: only the positions that carry a loss go through the
output matrix, which would otherwise cost as much as a third of the layers. It knows nothing of
data or schedules.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.base_model.loss import LinearCrossEntropy
from recipes.base_model.settings import ModelSettings


def rope_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [length, head_dim], halves repeated as Llama's `rotate_half`."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x: [batch, heads, length, head_dim] by its positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention; a key-value head serves several query heads."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = settings.num_heads, settings.num_kv_heads
        self.head_dim = settings.head_dim
        width = settings.hidden_size
        self.q_proj = nn.Linear(width, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.num_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def heads(projected: Tensor, count: int) -> Tensor:
            return projected.view(batch, length, count, self.head_dim).transpose(1, 2)

        queries = rotate(heads(self.q_proj(x), self.num_heads), cos, sin)
        keys = rotate(heads(self.k_proj(x), self.num_kv_heads), cos, sin)
        values = heads(self.v_proj(x), self.num_kv_heads)
        if self.num_kv_heads != self.num_heads:
            group = self.num_heads // self.num_kv_heads
            keys = keys.repeat_interleave(group, dim=1)
            values = values.repeat_interleave(group, dim=1)
        mixed = functional.scaled_dot_product_attention(
            queries.to(values.dtype), keys.to(values.dtype), values, is_causal=True
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(settings.hidden_size, settings.intermediate_size, bias=False)
        self.up_proj = nn.Linear(settings.hidden_size, settings.intermediate_size, bias=False)
        self.down_proj = nn.Linear(settings.intermediate_size, settings.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Norm, attention, norm, MLP, both added to the stream."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(settings.hidden_size, eps=settings.rms_norm_eps)
        self.self_attn = Attention(settings)
        self.post_attention_layernorm = nn.RMSNorm(settings.hidden_size, eps=settings.rms_norm_eps)
        self.mlp = Mlp(settings)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class BaseModel(nn.Module):
    """Embeddings, layers, final norm; the output matrix is the embedding matrix."""

    cos: Tensor
    sin: Tensor

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.embed_tokens = nn.Embedding(settings.vocab_size, settings.hidden_size)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.num_layers))
        self.norm = nn.RMSNorm(settings.hidden_size, eps=settings.rms_norm_eps)
        tables = rope_tables(settings.max_length, settings.head_dim, settings.rope_theta)
        self.register_buffer("cos", tables[0], persistent=False)
        self.register_buffer("sin", tables[1], persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Small normal weights; what adds to the stream starts smaller with depth."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            std = 0.02
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * self.settings.num_layers)
            nn.init.normal_(parameter, std=std)

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [batch, length] -> final hidden states [batch, length, hidden]."""
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def loss(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Mean cross entropy of the next token, over positions with a weight, so weighted.

        tokens: int64 [batch, length]; weights: float32 [batch, length], of each token as target.
        """
        states = self.hidden(tokens[:, :-1]).flatten(0, 1)
        targets, flat = tokens[:, 1:].flatten(), weights[:, 1:].flatten()
        wanted = flat.nonzero().squeeze(1)
        matrix = self.embed_tokens.weight.to(states.dtype)
        losses = LinearCrossEntropy.apply(states[wanted], matrix, targets[wanted], flat[wanted])
        return losses / flat[wanted].sum().clamp(min=1.0)
