"""The decoder: one forward pass over a step's flattened tokens, for all supported families.

Llama, Mistral, Qwen2 and Qwen3 differ in switches that ModelConfig carries (biases, query and
key norms, windows, rope), so one function serves them. Plain tensors and calls, no nn.Module:
on a small model a decode step is a few hundred operations of some microseconds each, and
everything between them counts.

A layer: x + attention(norm(x)), then x + mlp(norm(x)). Keys and values of the step's tokens are
written to the cache before attention reads it. Knows nothing of sequences or requests.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quickmatch.engine.attention import Attention
from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.lora import DOWN, GATE_UP, OUT, QKV, LoraStep
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.rope import RotaryTable, rotate_
from quickmatch.engine.weights import DecoderWeights, LayerWeights


@dataclass(slots=True)
class StepInputs:
    """One step's tensors. `plans` holds the attention plan of every window of the model."""

    token_ids: Tensor  # [num_tokens]
    positions: Tensor  # [num_tokens]
    slots: Tensor  # [num_tokens]
    sample_rows: Tensor | None  # [num_sampled] rows whose logits are wanted; None: every row
    plans: dict[int | None, Any]
    lora: LoraStep | None  # None: no row uses an adapter
    aux_layers: tuple[int, ...] = ()  # the hidden states entering these layers are wanted
    aux: list[Tensor] = field(default_factory=list)  # filled by the pass: [num_tokens, hidden] each


class Decoder:
    """Weights, tables and cache of one model, and the pass over them."""

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        rotary: RotaryTable,
        cache: KVCache,
        attention: Attention,
    ) -> None:
        self._config = config
        self._weights = weights
        self._rotary = rotary
        self._cache = cache
        self._attention = attention

    def forward(self, inputs: StepInputs) -> Tensor | None:
        """Return the logits of the rows to sample, [num_sampled, vocab], in the model's dtype.

        None if no row is to be sampled; the keys and values are written all the same.
        """
        weights = self._weights
        hidden = weights.embedding.index_select(0, inputs.token_ids)  # [num_tokens, hidden]
        cos, sin = self._rotary.at(inputs.positions)
        for index, layer in enumerate(weights.layers):
            if index in inputs.aux_layers:
                inputs.aux.append(hidden.clone())  # the layer adds to it in place
            hidden = self._attend(index, layer, hidden, cos, sin, inputs)
            hidden = self._mlp(index, layer, hidden, inputs.lora)
        if inputs.sample_rows is not None:
            if not len(inputs.sample_rows):
                return None
            hidden = hidden.index_select(0, inputs.sample_rows)
        return weights.lm_head(weights.norm(hidden))

    def _attend(
        self,
        index: int,
        layer: LayerWeights,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        inputs: StepInputs,
    ) -> Tensor:
        config = self._config
        x = layer.attention_norm(hidden)
        qkv = layer.qkv(x)
        if inputs.lora is not None:
            qkv = inputs.lora.add(qkv, x, index, QKV)
        heads = qkv.view(len(qkv), -1, config.head_dim)  # [num_tokens, q + k + v heads, head_dim]
        self._place(index, layer, heads, cos, sin, inputs)
        plan = inputs.plans[config.windows[index]]
        out = self._attention.run(plan, index, heads, self._cache)
        hidden = layer.o.add_to(hidden, out)
        return hidden if inputs.lora is None else inputs.lora.add(hidden, out, index, OUT)

    def _place(
        self,
        index: int,
        layer: LayerWeights,
        heads: Tensor,
        cos: Tensor,
        sin: Tensor,
        inputs: StepInputs,
    ) -> None:
        """Norm and rotate queries and keys in place; store keys and values."""
        config = self._config
        rotated = heads[:, : config.num_heads + config.num_kv_heads]
        if layer.qk_norm is not None:
            normed = F.rms_norm(rotated, (config.head_dim,), None, config.rms_norm_eps)
            torch.mul(normed, layer.qk_norm, out=rotated)
        rotate_(rotated, cos, sin)
        self._cache.write(index, inputs.slots, heads[:, config.num_heads :])

    def _mlp(
        self, index: int, layer: LayerWeights, hidden: Tensor, lora: LoraStep | None
    ) -> Tensor:
        x = layer.mlp_norm(hidden)
        gate_up = layer.gate_up(x)
        if lora is not None:
            gate_up = lora.add(gate_up, x, index, GATE_UP)
        inner = self._activate(gate_up)
        hidden = layer.down.add_to(hidden, inner)
        return hidden if lora is None else lora.add(hidden, inner, index, DOWN)

    def _activate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)
