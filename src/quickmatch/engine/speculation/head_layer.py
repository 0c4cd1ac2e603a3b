"""The computation of a trained head: fused hidden states in, logits over its vocabulary out.

With t a position, g_t = fc(the target's hidden states at t, side by side), and tok_{t+1} the token
that follows:

    x_t = [input_layernorm(embed(tok_{t+1})), hidden_norm(g_t)]
    h_t = g_t + o_proj(attention over x, rotary at position t)
    m_t = h_t + mlp(post_attention_layernorm(h_t))
    lm_head(norm(m_t)) scores tok_{t+2}

One step deeper, m_t stands for the g of position t + 1, which the target has not computed yet.
With `norm_before_residual`, h_t starts from hidden_norm(g_t) in place of g_t.

Knows no sequences and no cache; attention lies between `project` and `finish`, in head.py.
Source: EAGLE-3 (arXiv 2503.01840).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from quickmatch.engine.norm import RmsNorm
from quickmatch.engine.speculation.draft_linear import make_draft_linear
from quickmatch.engine.speculation.head_config import EMBEDDING, HeadConfig


class HeadLayer:
    """A head's weights, fused and packed for inference."""

    def __init__(
        self,
        config: HeadConfig,
        tensors: Mapping[str, Tensor],
        *,
        embedding: Tensor,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """tensors: as `read_head` gives them. embedding: the target's, [vocab, hidden]."""

        def read(*names: str) -> Tensor:
            parts = [tensors[name].to(device=device, dtype=dtype) for name in names]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        def norm(name: str) -> RmsNorm:
            return RmsNorm(read(name), config.rms_norm_eps)

        attention, mlp = "midlayer.self_attn", "midlayer.mlp"
        self._head_dim = config.head_dim
        self._norm_before_residual = config.norm_before_residual
        self._embedding = read(EMBEDDING) if EMBEDDING in tensors else embedding
        self._fc = make_draft_linear(read("fc.weight"))
        self._embedding_norm = norm("midlayer.input_layernorm.weight")
        self._hidden_norm = norm("midlayer.hidden_norm.weight")
        self._qkv = make_draft_linear(read(*(f"{attention}.{part}_proj.weight" for part in "qkv")))
        self._o = make_draft_linear(read(f"{attention}.o_proj.weight"))
        self._mlp_norm = norm("midlayer.post_attention_layernorm.weight")
        self._gate_up = make_draft_linear(read(f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"))
        self._down = make_draft_linear(read(f"{mlp}.down_proj.weight"))
        self._norm = norm("norm.weight")
        self._lm_head = make_draft_linear(read("lm_head.weight"))

    @property
    def num_bytes(self) -> int:
        """Bytes that the weights hold, the embeddings left out."""
        linears = (self._fc, self._qkv, self._o, self._gate_up, self._down, self._lm_head)
        norms = (self._embedding_norm, self._hidden_norm, self._mlp_norm, self._norm)
        return sum(part.num_bytes for part in (*linears, *norms))

    def fuse(self, features: Tensor) -> Tensor:
        """[rows, num_aux * target's hidden] -> g [rows, hidden]."""
        return self._fc(features)

    def project(self, g: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries, keys and values [rows, heads, head_dim], not rotated, and the residual.

        g: [rows, hidden]; token_ids: [rows], the target's token that follows each row.
        """
        embedded = self._embedding_norm(self._embedding.index_select(0, token_ids))
        normed = self._hidden_norm(g)
        qkv = self._qkv(torch.cat((embedded, normed), -1))
        residual = normed.contiguous() if self._norm_before_residual else g
        return qkv.view(len(qkv), -1, self._head_dim), residual

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Return m [rows, hidden]. attended: [rows, num_heads * head_dim]."""
        hidden = self._o.add_to(residual, attended)
        gate, up = self._gate_up(self._mlp_norm(hidden)).chunk(2, -1)
        return self._down.add_to(hidden, F.silu(gate).mul_(up))

    def score(self, m: Tensor) -> Tensor:
        """Return logits over the draft vocabulary, [rows, draft_vocab]."""
        return self._lm_head(self._norm(m))
