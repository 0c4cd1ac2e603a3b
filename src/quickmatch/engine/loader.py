"""Reads a checkpoint's safetensors as the tensors of a decoder, one layer at a time.

Files are mapped, not read whole, and a layer's tensors are fused and converted when it is asked
for, so that loading takes about the memory that the model will hold, whatever the decoder makes
of them. Every tensor is checked by name and shape; what is wrong is a ModelLoadError that names
it. Knows the Hugging Face names of tensors and nothing of how the decoder uses them.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quickmatch.core.errors import ModelLoadError
from quickmatch.engine.folder import read_safetensors_header, weight_files
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.quantization.folder import read_stored_format
from quickmatch.engine.quantization.formats import (
    INT8,
    QuantizedTensor,
    WeightFormat,
    join,
    quantize,
)
from quickmatch.engine.weights import (
    DecoderTensors,
    DecoderWeights,
    LayerTensors,
    LinearMaker,
    LinearTensors,
    dense_maker,
    pack_weights,
)


class Checkpoint:
    """The tensors of a model folder by name, read when asked for."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        device: torch.device,
        form: WeightFormat | None = None,
    ) -> None:
        """form: what linear layers are rounded to. Raises ModelLoadError where they are already."""
        self._folder = folder
        self._form = form
        self._stored = read_stored_format(folder)
        if form is not None and self._stored is not None:
            raise ModelLoadError(
                f"{folder} holds quantized weights already; leave the setting quantization out"
            )
        self._dtype = dtype
        self._device = device
        self._file_of: dict[str, Path] = {}
        for path in weight_files(folder):
            for name in read_safetensors_header(path):
                self._file_of[name] = path
        self._open: dict[Path, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str, *shape: int) -> Tensor:
        """Return a tensor in the checkpoint's dtype. Raises ModelLoadError on another shape."""
        tensor = self.read_any(name)
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"{name} in {self._file_of[name]} has the shape {list(tensor.shape)}, config.json "
                f"says {list(shape)}; the two do not belong together"
            )
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise ModelLoadError(
                f"{name} in {self._file_of[name]} is stored as {tensor.dtype}, without the scales "
                "that would give it a meaning; only linear layers may be quantized"
            )
        return tensor

    def read_any(self, name: str) -> Tensor:
        """Return a tensor as it is stored. Raises ModelLoadError if it is missing or damaged."""
        path = self._file_of.get(name)
        if path is None:
            raise ModelLoadError(
                f"{self._folder} has no tensor {name}, which its config.json promises; "
                "download the model again"
            )
        try:
            if path not in self._open:
                self._open[path] = safe_open(str(path), framework="pt")
            tensor: Tensor = self._open[path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{path} is damaged at {name} ({error}); download it again"
            ) from error
        return tensor

    def vector(self, name: str, size: int) -> Tensor:
        """Return a one-dimensional tensor, converted and on the device."""
        return self.read(name, size).to(device=self._device, dtype=self._dtype)

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        """Return a two-dimensional tensor, converted and on the device."""
        return self.read(name, rows, columns).to(device=self._device, dtype=self._dtype)

    def linear(
        self, parts: list[tuple[str, int]], in_features: int, *, bias: bool
    ) -> LinearTensors:
        """Fuse linear layers that read the same input; parts: (name, out_features) in order."""
        joined = torch.cat([self.vector(f"{n}.bias", out) for n, out in parts]) if bias else None
        if self._stored is not None:
            stored = self._stored
            weights = [stored.read_linear(self, n, out, in_features) for n, out in parts]
            return LinearTensors(self._joined(weights), joined)
        weight = torch.cat([self.matrix(f"{n}.weight", out, in_features) for n, out in parts])
        return LinearTensors(self.rounded(weight), joined)

    def output_layer(self, rows: int, columns: int) -> Tensor:
        """Return lm_head, dense; it may be stored quantized, as any linear layer."""
        if self._stored is None:
            return self.matrix("lm_head.weight", rows, columns)
        weight = self._stored.read_linear(self, "lm_head", rows, columns)
        dense = weight if isinstance(weight, Tensor) else weight.dequantized()
        return dense.to(device=self._device, dtype=self._dtype)

    def rounded(self, weight: Tensor) -> Tensor | QuantizedTensor:
        """Return a matrix in the format asked for."""
        return weight if self._form is None else quantize(weight, self._form)

    def head(self, embedding: Tensor) -> Tensor | QuantizedTensor:
        """Return the output layer, [vocab, hidden]: in 8 bits at least, as it decides the token."""
        is_quantized = self._form is not None or self._stored is not None
        return quantize(embedding, INT8) if is_quantized else embedding

    def _joined(self, weights: list[Tensor | QuantizedTensor]) -> Tensor | QuantizedTensor:
        """Stack matrices with the same input; where one is not quantized, all are made dense."""
        quantized = [w for w in weights if isinstance(w, QuantizedTensor)]
        forms = {(w.bits, w.is_float, w.group_size) for w in quantized}
        if len(quantized) == len(weights) and len(forms) == 1:
            return join(quantized)
        dense = [w if isinstance(w, Tensor) else w.dequantized() for w in weights]
        return torch.cat([w.to(device=self._device, dtype=self._dtype) for w in dense])


def read_tensors(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    form: WeightFormat | None = None,
) -> DecoderTensors:
    """Read a decoder; its layers as they are asked for, their products rounded to `form`.

    Raises ModelLoadError naming the missing or misshapen tensor.
    """
    checkpoint = Checkpoint(folder, dtype=dtype, device=device, form=form)
    embedding = checkpoint.matrix(
        "model.embed_tokens.weight", config.vocab_size, config.hidden_size
    )
    lm_head = embedding
    if not config.tie_word_embeddings:
        lm_head = checkpoint.output_layer(config.vocab_size, config.hidden_size)
    # On a CPU it may lie in the mapped file, which it outlives and which may be replaced on disk.
    return DecoderTensors(
        embedding=embedding.clone() if device.type == "cpu" else embedding,
        layers=(_read_layer(checkpoint, config, i) for i in range(config.num_layers)),
        norm=checkpoint.vector("model.norm.weight", config.hidden_size),
        lm_head=checkpoint.head(lm_head),
    )


def read_embedding(folder: Path, config: ModelConfig) -> Tensor:
    """Read a model's embedding, [vocab, hidden] bfloat16. Raises ModelLoadError."""
    checkpoint = Checkpoint(folder, dtype=torch.bfloat16, device=torch.device("cpu"))
    name = "model.embed_tokens.weight"
    return checkpoint.matrix(name, config.vocab_size, config.hidden_size).clone()


def load_weights(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    form: WeightFormat | None = None,
    make: LinearMaker | None = None,
) -> DecoderWeights:
    """Read a whole decoder. make: wraps its weights; None: as torch multiplies them fastest.

    Raises ModelLoadError as `read_tensors`.
    """
    tensors = read_tensors(folder, config, dtype=dtype, device=device, form=form)
    return pack_weights(tensors, config, make or dense_maker(dtype, device))


def _read_layer(checkpoint: Checkpoint, config: ModelConfig, index: int) -> LayerTensors:
    layer = f"model.layers.{index}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    hidden, inner = config.hidden_size, config.intermediate_size
    qkv = [
        (f"{attention}.q_proj", config.q_size),
        (f"{attention}.k_proj", config.kv_size),
        (f"{attention}.v_proj", config.kv_size),
    ]
    gate_up = [(f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)]
    o, down = [(f"{attention}.o_proj", hidden)], [(f"{mlp}.down_proj", hidden)]
    return LayerTensors(
        attention_norm=checkpoint.vector(f"{layer}.input_layernorm.weight", hidden),
        qkv=checkpoint.linear(qkv, hidden, bias=config.qkv_bias),
        qk_norm=_qk_norm(checkpoint, config, attention) if config.qk_norm else None,
        o=checkpoint.linear(o, config.q_size, bias=config.o_bias),
        mlp_norm=checkpoint.vector(f"{layer}.post_attention_layernorm.weight", hidden),
        gate_up=checkpoint.linear(gate_up, hidden, bias=config.mlp_bias),
        down=checkpoint.linear(down, inner, bias=config.mlp_bias),
    )


def _qk_norm(checkpoint: Checkpoint, config: ModelConfig, attention: str) -> Tensor:
    """Return the norms' weights spread over the heads: [num_heads + num_kv_heads, head_dim]."""
    query = checkpoint.vector(f"{attention}.q_norm.weight", config.head_dim)
    key = checkpoint.vector(f"{attention}.k_norm.weight", config.head_dim)
    return torch.cat(
        (query.expand(config.num_heads, -1), key.expand(config.num_kv_heads, -1))
    ).contiguous()
