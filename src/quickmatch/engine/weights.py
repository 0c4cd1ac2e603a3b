"""Where the weights of a decoder lie, layer by layer, in the form that inference uses.

Query, key and value are one matrix, gate and up are one matrix: fewer, larger multiplications.
A fused matrix's rows are in that order.
"""

from dataclasses import dataclass

from torch import Tensor

from quickmatch.engine.linear import Linear
from quickmatch.engine.norm import RmsNorm


@dataclass(slots=True)
class LayerWeights:
    """One decoder layer."""

    attention_norm: RmsNorm
    qkv: Linear  # hidden -> q_size + 2 * kv_size
    qk_norm: Tensor | None  # [num_heads + num_kv_heads, head_dim], one row a head
    o: Linear  # q_size -> hidden
    mlp_norm: RmsNorm
    gate_up: Linear  # hidden -> 2 * intermediate
    down: Linear  # intermediate -> hidden


@dataclass(slots=True)
class DecoderWeights:
    """A whole model. `num_bytes` counts every tensor once, the packed ones included."""

    embedding: Tensor  # [vocab, hidden]
    layers: list[LayerWeights]
    norm: RmsNorm
    lm_head: Linear  # hidden -> vocab

    @property
    def num_bytes(self) -> int:
        """Bytes that the weights hold in memory."""
        total = _bytes(self.embedding) + self.norm.num_bytes + self.lm_head.num_bytes
        for layer in self.layers:
            total += layer.attention_norm.num_bytes + layer.mlp_norm.num_bytes
            total += 0 if layer.qk_norm is None else _bytes(layer.qk_norm)
            linears = (layer.qkv, layer.o, layer.gate_up, layer.down)
            total += sum(linear.num_bytes for linear in linears)
        return total


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
