"""The trainable head: EAGLE-3's one layer, unrolled on its own states.

Owns the computation with gradients; the engine's own code of the same layer drafts while serving,
and a test holds the two together. Knows no files, no data and no loss.

At the row of position t the target has read token t and left the hidden states g_t (three layers
side by side, fused by `fc`). With token t + 1 the head foretells token t + 2:

    x = [input_layernorm(embed(token t+1)) | hidden_norm(g)]
    h = g + o_proj(attention(x));  m = h + mlp(post_attention_layernorm(h))
    logits over the draft vocabulary = lm_head(norm(m))

Step 1 does this with the target's g of every row. While drafting there is no target: step k takes
the head's own m in place of g, one position on, with the next token. Training unrolls this at all
rows at once, each row with a draft of its own that begins there: in step k a row sees the keys of
step 1 up to itself (the prefix, from the target's states) and those that its own draft made in
steps 2 to k. Tokens are the true ones at every step.

Source: EAGLE-3 (arXiv 2503.01840), "training-time test".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from quickmatch.engine.rope import RotaryTable
from quickmatch.engine.speculation.head_config import HeadConfig

Rotation = tuple[Tensor, Tensor]

# Scores, or logits, that are kept for the gradient at each depth, 64 MiB of float32. More are
# computed in pieces of so many, and once again on the way back.
MAX_KEPT = 1 << 24


@dataclass(frozen=True, slots=True)
class HeadBatch:
    """Sequences, padded at the end. Row t is position offset + t; the last token has no row.

    A draft may begin at any row from the prompt's last on (`first`): there the target has chosen
    the answer's first token. `num_drafts` rows of a sequence begin one.
    """

    aux: Tensor  # [num_seqs, length, num_aux * target_hidden] float
    next_ids: Tensor  # [num_seqs, length] the token after each row
    offset: Tensor  # [num_seqs] positions before the first row, which the head does not see
    first: Tensor  # [num_seqs]
    num_drafts: Tensor  # [num_seqs]
    # What the target says at row first + 1 + i, for i < num_drafts, in draft tokens:
    target_ids: Tensor  # [num_seqs, max_drafts, k]
    target_probs: Tensor  # [num_seqs, max_drafts, k] float, sums to 1
    target_best: Tensor  # [num_seqs, max_drafts] its likeliest token; -1: none of the head's

    @property
    def max_drafts(self) -> int:
        """The largest number of drafts in a sequence."""
        return self.target_best.shape[1]

    def wanted(self, step: int) -> Tensor:
        """Return [num_seqs, max_drafts - step + 1]: where step `step` has something to foretell."""
        index = torch.arange(step - 1, self.max_drafts, device=self.first.device)
        return (index < self.num_drafts[:, None]) & (self.target_best[:, step - 1 :] >= 0)


class DraftHead(nn.Module):
    """One head. Parameters bear EAGLE-3's names; the embedding is the target's and stays as it is.

    embedding: [vocab, hidden]. draft_ids: [draft_vocab] int64, ascending: the target's id of each
    draft token.
    """

    embedding: Tensor
    draft_ids: Tensor

    def __init__(self, config: HeadConfig, embedding: Tensor, draft_ids: Tensor) -> None:
        super().__init__()
        self.config = config
        hidden, fused = config.hidden_size, config.num_aux * config.target_hidden_size
        self.fc = nn.Linear(fused, hidden, bias=False)
        self.midlayer = _Layer(config)
        self.norm = nn.RMSNorm(hidden, config.rms_norm_eps)
        self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)
        self.register_buffer("embedding", embedding, persistent=False)
        self.register_buffer("draft_ids", draft_ids, persistent=False)
        self._rotary = RotaryTable(
            config.rope,
            config.head_dim,
            config.max_model_len,
            dtype=torch.float32,
            device=embedding.device,
        )

    def unroll(self, batch: HeadBatch, num_steps: int) -> Iterator[Tensor]:
        """Yield the states m of steps 1, 2, …: step k's is [num_seqs, max_drafts - k + 1, hidden].

        Column i belongs to the draft that begins at row first + i, and foretells token
        first + i + k + 1. Ends early where no draft is that long.
        """
        config, layer = self.config, self.midlayer
        length = batch.next_ids.shape[1]
        index = torch.arange(batch.max_drafts, device=batch.first.device)
        rows = batch.first[:, None] + index  # [num_seqs, max_drafts]
        inside = rows.clamp(max=length - 1)
        tokens = batch.next_ids.gather(1, inside)  # the one after each row

        fused = self.fc(batch.aux)
        x = layer.join(self._embed(batch.next_ids), fused)
        every = torch.arange(length, device=rows.device).expand(len(rows), -1)
        prefix = layer.self_attn.keys(x, self._turn(batch.offset[:, None] + every))
        hidden = config.hidden_size
        state = fused.gather(1, inside[..., None].expand(-1, -1, hidden))
        x = x.gather(1, inside[..., None].expand(-1, -1, 2 * hidden))
        mask = every[:, None, :] <= rows[..., None]  # [num_seqs, max_drafts, length]
        own: list[tuple[Tensor, Tensor]] = []
        for step in range(1, min(num_steps, batch.max_drafts) + 1):
            num_columns = batch.max_drafts - step + 1
            positions = batch.offset[:, None] + rows[:, :num_columns] + step - 1
            turn = self._turn(positions.clamp(max=config.max_model_len - 1))
            if step > 1:
                state = state[:, :num_columns]
                x = layer.join(self._embed(tokens[:, step - 1 :]), state)
                own.append(layer.self_attn.keys(x, turn))
            state = layer(x, state, turn, prefix, mask[:, :num_columns], own)
            yield state

    def logits(self, state: Tensor) -> Tensor:
        """Return logits over the draft vocabulary of states [..., hidden]."""
        logits: Tensor = self.lm_head(self.norm(state))
        return logits

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what a folder of the head holds, weights in `dtype`."""
        weights = {n: p.detach().to(dtype).cpu() for n, p in self.named_parameters()}
        ids = self.draft_ids.cpu()
        reached = torch.zeros(self.config.vocab_size, dtype=torch.bool)
        reached[ids] = True
        return weights | {"d2t": ids - torch.arange(len(ids)), "t2d": reached}

    def load(self, tensors: Mapping[str, Tensor]) -> int:
        """Take over an earlier head; return how many rows of its lm_head are kept.

        A draft token's row follows its target id; rows of tokens that are new stay as they are.
        Raises KeyError or RuntimeError where the shapes differ otherwise.
        """
        old = torch.arange(len(tensors["d2t"])) + tensors["d2t"]
        row_of = torch.full((self.config.vocab_size,), -1, dtype=torch.int64)
        row_of[old] = torch.arange(len(old))
        source = row_of[self.draft_ids.cpu()]
        kept = source >= 0
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name != "lm_head.weight":
                    parameter.copy_(tensors[name])
            rows = tensors["lm_head.weight"][source[kept]].to(self.lm_head.weight)
            self.lm_head.weight[kept.to(self.lm_head.weight.device)] = rows
        return int(kept.sum())

    def _embed(self, token_ids: Tensor) -> Tensor:
        return functional.embedding(token_ids, self.embedding).to(self.fc.weight.dtype)

    def _turn(self, positions: Tensor) -> Rotation:
        """Return cos and sin of positions [num_seqs, n], each [num_seqs, n, 1, head_dim]."""
        cos, sin = self._rotary.at(positions.reshape(-1))
        shape = (*positions.shape, 1, -1)
        return cos.view(shape), sin.view(shape)


class _Layer(nn.Module):
    """The one layer. Its attention and its residual read different things: x and the state."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(hidden, eps)
        self.hidden_norm = nn.RMSNorm(hidden, eps)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)
        self.self_attn = _Attention(config)
        self.mlp = _Mlp(hidden, config.intermediate_size)
        self._is_residual_normed = config.norm_before_residual

    def join(self, embedded: Tensor, state: Tensor) -> Tensor:
        """Return x: [..., 2 * hidden]."""
        return torch.cat((self.input_layernorm(embedded), self.hidden_norm(state)), dim=-1)

    def forward(
        self,
        x: Tensor,
        state: Tensor,
        turn: Rotation,
        prefix: tuple[Tensor, Tensor],
        mask: Tensor,
        own: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Return m of the columns of x."""
        residual = self.hidden_norm(state) if self._is_residual_normed else state
        h = residual + self.self_attn(x, turn, prefix, mask, own)
        out: Tensor = h + self.mlp(self.post_attention_layernorm(h))
        return out


class _Attention(nn.Module):
    """Attention of a column to the prefix up to its row, and to what its own draft has added."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        self._num_heads, self._num_kv_heads, self._dim = config.num_heads, config.num_kv_heads, dim
        self.q_proj = nn.Linear(2 * hidden, config.num_heads * dim, bias=False)
        self.k_proj = nn.Linear(2 * hidden, config.num_kv_heads * dim, bias=False)
        self.v_proj = nn.Linear(2 * hidden, config.num_kv_heads * dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * dim, hidden, bias=False)

    def keys(self, x: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        """Return keys and values, each [num_seqs, num_kv_heads, n, head_dim]."""
        k = _rotate(self._split(self.k_proj(x)), turn)
        return k.transpose(1, 2), self._split(self.v_proj(x)).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        turn: Rotation,
        prefix: tuple[Tensor, Tensor],
        mask: Tensor,
        own: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Return [num_seqs, num_columns, hidden]; mask: [num_seqs, num_columns, length]."""
        q = _rotate(self._split(self.q_proj(x)), turn) * self._dim**-0.5
        num_scores = len(x) * self._num_heads * mask.shape[2]  # of a column
        size = max(1, MAX_KEPT // num_scores)
        if x.shape[1] <= size:
            out = self._attend(q, prefix, mask, own)
        else:  # a column sees no other's
            pieces = [
                checkpoint(
                    self._attend,
                    q[:, start : start + size],
                    prefix,
                    mask[:, start : start + size],
                    [(k[:, :, start:], v[:, :, start:]) for k, v in own],
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
                for start in range(0, x.shape[1], size)
            ]
            out = torch.cat(pieces, dim=1)
        projected: Tensor = self.o_proj(out)
        return projected

    def _attend(
        self,
        q: Tensor,
        prefix: tuple[Tensor, Tensor],
        mask: Tensor,
        own: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Return [num_seqs, num_columns, num_heads * head_dim] of q, which has a head's columns
        [num_seqs, num_columns, num_heads, head_dim]; of `own` the first are these columns'.
        """
        num_columns, group = q.shape[1], self._num_heads // self._num_kv_heads
        # [num_seqs, num_kv_heads, group * num_columns, head_dim]: a group's heads share their keys
        q = q.reshape(*q.shape[:2], -1, group, self._dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
        scores = q @ prefix[0].transpose(-1, -2)
        hidden = ~mask[:, None].expand(-1, group, -1, -1).flatten(1, 2)[:, None]
        parts = [scores.masked_fill(hidden, -torch.inf)]
        own = [(_of_group(k, num_columns, group), _of_group(v, num_columns, group)) for k, v in own]
        parts += [(q * k).sum(-1, keepdim=True) for k, _ in own]
        weights = torch.softmax(torch.cat(parts, dim=-1), dim=-1)
        length = prefix[0].shape[2]
        out = weights[..., :length] @ prefix[1]
        for index, (_, v) in enumerate(own):
            out = out + weights[..., length + index, None] * v
        return out.reshape(*out.shape[:2], group, num_columns, -1).permute(0, 3, 1, 2, 4).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self._dim)


class _Mlp(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


def _of_group(heads: Tensor, num_columns: int, group: int) -> Tensor:
    """Repeat the first columns of [num_seqs, num_kv_heads, n, head_dim] for a group's heads."""
    return heads[:, :, :num_columns].repeat(1, 1, group, 1)


def _rotate(heads: Tensor, turn: Rotation) -> Tensor:
    """Rotate [num_seqs, n, num_heads, head_dim]; cos and sin as RotaryTable has them."""
    return heads * turn[0] + heads.roll(heads.shape[-1] // 2, -1) * turn[1]
