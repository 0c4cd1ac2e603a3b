"""Where the weights of a decoder lie, layer by layer: as tensors, and as torch's decoder uses them.

Query, key and value are one matrix, gate and up are one matrix: fewer, larger multiplications.
A fused matrix's rows are in that order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quickmatch.engine.linear import Linear, make_linear
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.norm import RmsNorm
from quickmatch.engine.quantization.formats import QuantizedTensor


@dataclass(slots=True)
class LinearTensors:
    """A linear layer as the checkpoint has it."""

    weight: Tensor | QuantizedTensor  # [out, in]
    bias: Tensor | None  # [out]


@dataclass(slots=True)
class LayerTensors:
    """One decoder layer as the checkpoint has it, fused."""

    attention_norm: Tensor  # [hidden]
    qkv: LinearTensors  # hidden -> q_size + 2 * kv_size
    qk_norm: Tensor | None  # [num_heads + num_kv_heads, head_dim], one row a head
    o: LinearTensors  # q_size -> hidden
    mlp_norm: Tensor  # [hidden]
    gate_up: LinearTensors  # hidden -> 2 * intermediate
    down: LinearTensors  # intermediate -> hidden

    @property
    def linears(self) -> tuple[LinearTensors, ...]:
        """The four products, in the order of an adapter's GROUPS."""
        return self.qkv, self.o, self.gate_up, self.down


@dataclass(slots=True)
class DecoderTensors:
    """A whole model. The layers can be gone through once."""

    embedding: Tensor  # [vocab, hidden]
    layers: Iterator[LayerTensors]
    norm: Tensor  # [hidden]
    lm_head: Tensor | QuantizedTensor  # [vocab, hidden]; the embedding itself where they are tied


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


# Wraps a weight [out, in] and its bias as a decoder multiplies it.
LinearMaker = Callable[[Tensor | QuantizedTensor, Tensor | None], Linear]


def dense_maker(dtype: torch.dtype, device: torch.device) -> LinearMaker:
    """Return what makes torch's products: dense; quantized ones are rounded, and as large."""

    def make(weight: Tensor | QuantizedTensor, bias: Tensor | None) -> Linear:
        dense = weight if isinstance(weight, Tensor) else weight.dequantized(dtype)
        return make_linear(dense.to(device), bias)

    return make


def pack_weights(tensors: DecoderTensors, config: ModelConfig, make: LinearMaker) -> DecoderWeights:
    """Put a model's tensors into the form that a decoder runs fastest here."""
    return DecoderWeights(
        embedding=tensors.embedding,
        layers=[_pack_layer(layer, config.rms_norm_eps, make) for layer in tensors.layers],
        norm=RmsNorm(tensors.norm, config.rms_norm_eps),
        lm_head=make(tensors.lm_head, None),
    )


def _pack_layer(layer: LayerTensors, eps: float, make: LinearMaker) -> LayerWeights:
    qkv, o, gate_up, down = (make(one.weight, one.bias) for one in layer.linears)
    return LayerWeights(
        attention_norm=RmsNorm(layer.attention_norm, eps),
        qkv=qkv,
        qk_norm=layer.qk_norm,
        o=o,
        mlp_norm=RmsNorm(layer.mlp_norm, eps),
        gate_up=gate_up,
        down=down,
    )
