"""A plain PyTorch loop over a Llama-shaped model: what an afternoon's work reaches.

It has no scheduler, no paging, no sampler and no adapters, and one dense cache for a batch of
prompts of one length. An engine that falls behind it pays more for its features than they are
worth. Model code is written out here, on purpose apart from ours.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.workers.protocol import serve

_MAX_LEN = 2048


class EagerLoop:
    """Greedy decoding with fused projections and `scaled_dot_product_attention`."""

    def load(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        if config["model_type"] != "llama":
            raise NotImplementedError(f"only Llama's shape, not {config['model_type']}")
        if options.get("num_threads"):
            torch.set_num_threads(options["num_threads"])
        self._heads, self._kv_heads = (
            config["num_attention_heads"],
            config["num_key_value_heads"],
        )
        self._dim, self._eps = config["head_dim"], config["rms_norm_eps"]
        self._weights = _fuse(load_file(Path(model) / "model.safetensors"))
        self._num_layers = config["num_hidden_layers"]
        self._cos, self._sin = _rope_tables(self._dim, config["rope_theta"])
        return {"torch": torch.__version__, "num_threads": torch.get_num_threads()}

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        tokens = torch.tensor(prompts)
        length = tokens.shape[1]
        shape = (2, self._num_layers, len(prompts), self._kv_heads, length + max_tokens, self._dim)
        cache = torch.zeros(shape, dtype=torch.bfloat16)
        steps = [self._forward(tokens, 0, cache)]
        for position in range(length, length + max_tokens - 1):
            steps.append(self._forward(steps[-1][:, None], position, cache))
        return torch.stack(steps, 1).tolist()

    def _forward(self, tokens: Tensor, start: int, cache: Tensor) -> Tensor:
        """Run tokens [batch, length] at positions from `start`; return the next ones [batch]."""
        weights, end = self._weights, start + tokens.shape[1]
        cos, sin = self._cos[start:end], self._sin[start:end]
        x = weights["embed"][tokens]
        for layer in range(self._num_layers):
            normed = self._norm(x, weights[f"{layer}.norm1"])
            qkv = F.linear(normed, weights[f"{layer}.qkv"])
            heads = qkv.view(*tokens.shape, -1, self._dim).transpose(1, 2)
            q, k, v = heads.split([self._heads, self._kv_heads, self._kv_heads], 1)
            keys, values = cache[0, layer, :, :, :end], cache[1, layer, :, :, :end]
            keys[:, :, start:] = _rotate(k, cos, sin)
            values[:, :, start:] = v
            out = F.scaled_dot_product_attention(
                _rotate(q, cos, sin),
                keys,
                values,
                is_causal=start == 0,
                enable_gqa=self._heads != self._kv_heads,
            )
            out = out.transpose(1, 2).reshape(*tokens.shape, -1)
            x = x + F.linear(out, weights[f"{layer}.o"])
            normed = self._norm(x, weights[f"{layer}.norm2"])
            gate, up = F.linear(normed, weights[f"{layer}.gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, weights[f"{layer}.down"])
        last = self._norm(x[:, -1], weights["norm"])
        return F.linear(last, weights["head"]).argmax(-1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._eps)


def _fuse(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put query, key and value side by side, and gate and up."""
    names = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    names |= {"o": "self_attn.o_proj", "down": "mlp.down_proj"}
    embed = checkpoint["model.embed_tokens.weight"]
    fused = {"embed": embed, "norm": checkpoint["model.norm.weight"]}
    fused["head"] = checkpoint.get("lm_head.weight", embed)
    layer = 0
    while (at := f"model.layers.{layer}.") + "input_layernorm.weight" in checkpoint:
        for short, name in names.items():
            fused[f"{layer}.{short}"] = checkpoint[f"{at}{name}.weight"]
        attention = [checkpoint[f"{at}self_attn.{p}_proj.weight"] for p in "qkv"]
        fused[f"{layer}.qkv"] = torch.cat(attention)
        gate_up = [checkpoint[f"{at}mlp.{p}_proj.weight"] for p in ("gate", "up")]
        fused[f"{layer}.gate_up"] = torch.cat(gate_up)
        layer += 1
    return fused


def _rope_tables(dim: int, theta: float) -> tuple[Tensor, Tensor]:
    inverse = theta ** -(torch.arange(0, dim, 2) / dim)
    angles = torch.outer(torch.arange(_MAX_LEN), inverse).repeat(1, 2)  # [max_len, dim]
    return angles.cos().bfloat16(), angles.sin().bfloat16()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


if __name__ == "__main__":
    serve(EagerLoop)
