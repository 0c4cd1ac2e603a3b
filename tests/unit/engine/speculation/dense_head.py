"""What a head computes, written to be read: a whole sequence in float32, no cache, no batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quickmatch.engine.rope import RotaryTable
from quickmatch.engine.speculation.head_config import HeadConfig


class DenseHead:
    """A head over one sequence. `embedding`: [vocab, hidden]."""

    def __init__(self, config: HeadConfig, tensors: dict[str, Tensor], embedding: Tensor) -> None:
        self.config = config
        self.tensors = tensors
        self.embedding = tensors.get("embed_tokens.weight", embedding)
        self.rotary = RotaryTable(
            config.rope,
            config.head_dim,
            config.max_model_len,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )

    def fuse(self, features: Tensor) -> Tensor:
        """[rows, aux * target's hidden] -> g [rows, hidden]."""
        return features @ self.tensors["fc.weight"].T

    def run(self, g: Tensor, next_token_ids: list[int]) -> tuple[Tensor, Tensor]:
        """Return m [rows, hidden] and logits [rows, draft_vocab] of positions 0, 1, …"""
        t = self.tensors
        embedded = self._norm(self.embedding[next_token_ids], t["midlayer.input_layernorm.weight"])
        normed = self._norm(g, t["midlayer.hidden_norm.weight"])
        residual = normed if self.config.norm_before_residual else g
        h = residual + self._attention(torch.cat([embedded, normed], dim=-1))
        x = self._norm(h, t["midlayer.post_attention_layernorm.weight"])
        inner = F.silu(x @ t["midlayer.mlp.gate_proj.weight"].T)
        inner = inner * (x @ t["midlayer.mlp.up_proj.weight"].T)
        m = h + inner @ t["midlayer.mlp.down_proj.weight"].T
        return m, self._norm(m, t["norm.weight"]) @ t["lm_head.weight"].T

    def along(self, g: Tensor, next_token_ids: list[int], path: list[int]) -> list[Tensor]:
        """Return the probabilities [draft_vocab] after the sequence and after each of the path.

        g, next_token_ids: of all positions that the target has computed.
        """
        out = []
        for token_id in [*path, None]:
            m, logits = self.run(g, next_token_ids)
            out.append(logits[-1].softmax(-1))
            if token_id is not None:
                g, next_token_ids = torch.cat([g, m[-1:]]), [*next_token_ids, token_id]
        return out

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps).rsqrt() * weight

    def _attention(self, x: Tensor) -> Tensor:
        config, size = self.config, self.config.head_dim
        query, key, value = (
            (x @ self.tensors[f"midlayer.self_attn.{part}_proj.weight"].T).view(len(x), -1, size)
            for part in "qkv"
        )
        cos, sin = self.rotary.at(torch.arange(len(x)))
        query = query * cos + query.roll(size // 2, -1) * sin
        key = key * cos + key.roll(size // 2, -1) * sin
        outs = []
        for head in range(config.num_heads):
            own = head // (config.num_heads // config.num_kv_heads)
            scores = query[:, head] @ key[:, own].T / size**0.5
            hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
            outs.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value[:, own])
        return torch.cat(outs, dim=-1) @ self.tensors["midlayer.self_attn.o_proj.weight"].T
