"""A pass in one native call a step (forward_pass.py): src/native/decoder.

For x86 CPUs with AVX2 or AVX-512, and models in bfloat16: the kernels are compiled for five
instruction sets, and the quickest that the processor has is taken, or the one that QUICKMATCH_ISA
names (amx, avx512bf16, avx512vnni, avx2vnni, avx2). Packs the weights at load, turns a step's spans
into flat lists, and hands over addresses of what it allocates for the answer.

Products are summed in float32 and the residual stays in float32, so that the logits, which are
float32, are at least as exact as those of torch's operations in bfloat16.

A row's numbers are the same, bit for bit, whatever rows stand beside it and whether its token is
decoded or verified as a node of a draft.
"""

import logging
import os
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quickmatch.core.errors import ConfigError
from quickmatch.engine.batch import Eviction, StepBatch
from quickmatch.engine.forward_pass import PassOutput, PassSize
from quickmatch.engine.loader import read_embedding, read_tensors
from quickmatch.engine.lora import LoraLayers
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.quantization.formats import QuantizedTensor, WeightFormat
from quickmatch.engine.rope import rope_frequencies
from quickmatch.engine.weights import LayerTensors

if TYPE_CHECKING:
    from quickmatch import _native

logger = logging.getLogger(__name__)
_MIN_WINDOW = 256  # tokens; more than any draft is deep, which the kernels rest on
_LANES = 16


def why_not_native(
    model: ModelConfig, block_size: int, *, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Return why the native pass cannot run a model here, or None if it can."""
    if device.type != "cpu":
        return f"the device is {device.type}"
    if dtype != torch.bfloat16:
        return f"the dtype is {str(dtype).removeprefix('torch.')}"
    try:
        from quickmatch import _native
    except ImportError:
        return "the native extension is not installed"
    if not _native.decoder_isas():
        return "this processor has no AVX2"
    sizes = (model.hidden_size, model.intermediate_size, block_size)
    if any(one % _LANES for one in sizes) or model.head_dim % (2 * _LANES) or model.head_dim > 512:
        return f"a width is no multiple of {_LANES}"
    if any(window is not None and window < _MIN_WINDOW for window in model.windows):
        return f"it has a window of fewer than {_MIN_WINDOW} tokens"
    return None


def kernels() -> "_native.Isa":
    """Return the kernels for this processor. Raises ConfigError if QUICKMATCH_ISA names others."""
    from quickmatch import _native

    able = _native.decoder_isas()
    name = os.environ.get("QUICKMATCH_ISA") or able[0]
    if name not in able:
        raise ConfigError(
            f"QUICKMATCH_ISA is {name!r}; this processor runs: {', '.join(able)}; leave it unset "
            "for the quickest"
        )
    found: _native.Isa = getattr(_native, name)
    return found


class NativePass:
    """One model's. Raises ModelLoadError from the constructor."""

    def __init__(
        self,
        folder: Path,
        model: ModelConfig,
        size: PassSize,
        *,
        num_threads: int = 1,
        form: WeightFormat | None = None,
    ) -> None:
        """To be called only where `why_not_native` has nothing to say."""
        self._model = model
        self._logits = torch.empty(0, model.vocab_size)
        self._logits_of: dict[int, Tensor] = {}  # leading rows of these, by their number
        self._windows = [0 if window is None else window for window in model.windows]
        shape = {
            name: value for name, value in asdict(model).items() if isinstance(value, (int, float))
        }
        shape["max_model_len"] = size.max_model_len
        shape["num_slots"] = size.num_blocks * size.block_size
        shape["block_size"] = size.block_size
        shape["has_int8_kv"] = int(size.has_int8_kv)
        # A head runs beside it, on its threads.
        self.kernels = kernels()
        self.decoder = self.kernels.Decoder(shape, num_threads=num_threads)
        tensors = read_tensors(
            folder, model, dtype=torch.bfloat16, device=torch.device("cpu"), form=form
        )
        self._folder = folder
        # Tied and of few bits, the output layer's weights are looked up instead.
        is_shared = model.tie_word_embeddings and isinstance(tensors.lm_head, QuantizedTensor)
        self._embedding = None if is_shared else tensors.embedding.contiguous()
        frequencies, factor = rope_frequencies(model.rope, model.head_dim)
        angle = torch.outer(torch.arange(size.max_model_len, dtype=torch.float32), frequencies)
        self._set_ends(tensors.lm_head, tensors.norm, angle.cos() * factor, angle.sin() * factor)
        for layer in tensors.layers:
            self._add_layer(layer)
        num_embedded = 0 if self._embedding is None else self._embedding.numel()
        self.num_bytes = self.decoder.num_bytes + num_embedded * 2

    @property
    def embedding(self) -> Tensor:
        """The checkpoint's embedding, [vocab, hidden] bfloat16; read now where it is not held."""
        if self._embedding is None:
            self._embedding = read_embedding(self._folder, self._model)
            self.num_bytes += self._embedding.numel() * 2
        return self._embedding

    def _set_ends(
        self, lm_head: Tensor | QuantizedTensor, norm: Tensor, cos: Tensor, sin: Tensor
    ) -> None:
        held = [norm.float(), cos, sin]
        final_norm, cosines, sines = (one.data_ptr() for one in held)
        embedding = 0 if self._embedding is None else self._embedding.data_ptr()
        head = in_place(lm_head)
        self.decoder.set_ends(
            embedding=embedding, lm_head=matrix_parts(head), norm=final_norm, cos=cosines, sin=sines
        )

    def _add_layer(self, layer: LayerTensors) -> None:
        norms = [layer.attention_norm.float(), layer.mlp_norm.float()]
        head_norms = None if layer.qk_norm is None else layer.qk_norm.float().contiguous()
        weights = [in_place(one.weight) for one in layer.linears]
        self.decoder.add_layer(
            attention_norm=norms[0].data_ptr(),
            mlp_norm=norms[1].data_ptr(),
            head_norms=0 if head_norms is None else head_norms.data_ptr(),
            weights=[matrix_parts(weight) for weight in weights],
            biases=[0 if one.bias is None else one.bias.data_ptr() for one in layer.linears],
        )

    def run(
        self, batch: StepBatch, rows: list[int], aux_layers: tuple[int, ...] = ()
    ) -> PassOutput:
        """See ForwardPass.run. Logits are float32, and hold until the next run."""
        num_tokens = len(batch.token_ids)
        spans: list[int] = []
        blocks: list[int] = []
        parents: list[int] = []
        adapters: list[int] = []
        for span in batch.spans:
            table, tree = span.block_table, span.tree
            spans += (span.start, span.num_tokens, span.context_len, len(table), tree is not None)
            blocks += table
            if tree is not None:
                parents += tree.parents
        if any(span.adapter_row >= 0 for span in batch.spans):
            adapters = [span.adapter_row for span in batch.spans for _ in range(span.num_tokens)]
        logits = self._logits_of.get(len(rows))
        if logits is None:
            logits = self._take_logits(len(rows))
        aux = None
        if aux_layers:
            aux = torch.empty(
                len(aux_layers), num_tokens, self._model.hidden_size, dtype=torch.bfloat16
            )
        best = self.decoder.run(
            token_ids=batch.token_ids,
            positions=batch.positions,
            slots=batch.slots,
            row_adapters=adapters,
            spans=spans,
            blocks=blocks,
            parents=parents,
            wanted=rows,
            aux_layers=list(aux_layers),
            windows=self._windows,
            logits=logits.data_ptr(),
            aux=0 if aux is None else aux.data_ptr(),
        )
        return PassOutput(logits if rows else None, [] if aux is None else list(aux), best)

    def _take_logits(self, num_rows: int) -> Tensor:
        """Return memory for so many rows of logits, the same from step to step.

        Fresh memory of that size would be mapped, page by page, in every step.
        """
        if num_rows > len(self._logits):
            self._logits = torch.empty(2 * num_rows, self._model.vocab_size)
            self._logits_of.clear()
        view = self._logits_of[num_rows] = self._logits[:num_rows]
        return view

    def move(self, sources: list[int], targets: list[int]) -> None:
        """See ForwardPass.move."""
        self.decoder.move(sources, targets)

    def evict(self, eviction: Eviction) -> None:
        """See ForwardPass.evict."""
        self.decoder.evict(
            eviction.sources,
            eviction.targets,
            num_first=eviction.num_first,
            num_last=eviction.num_last,
        )

    def put_adapter(self, row: int, layers: LoraLayers) -> None:
        """See ForwardPass.put_adapter. Over weights of few bits an adapter is held in 8."""
        places = [low for layer in layers for low in layer]
        held = [None if low is None else (low.a.contiguous(), low.b.contiguous()) for low in places]
        self.decoder.set_adapter(
            row,
            ranks=[0 if pair is None else len(pair[0]) for pair in held],
            downs=[0 if pair is None else pair[0].data_ptr() for pair in held],
            ups=[0 if pair is None else pair[1].data_ptr() for pair in held],
        )

    def drop_adapter(self, row: int) -> None:
        """See ForwardPass.drop_adapter."""
        self.decoder.drop_adapter(row)


def in_place(weight: Tensor | QuantizedTensor) -> Tensor | QuantizedTensor:
    """Return a matrix whose numbers lie one after the other, as addresses need it.

    One in groups that the kernels do not take becomes a dense one.
    """
    if isinstance(weight, Tensor):
        return weight.contiguous()
    if weight.group_size % _LANES:
        _tell_group_size(weight.group_size)
        return weight.dequantized().bfloat16().contiguous()
    zeros = None if weight.zeros is None else weight.zeros.contiguous()
    codes, scales = weight.codes.contiguous(), weight.scales.float().contiguous()
    return replace(weight, codes=codes, scales=scales, zeros=zeros)


@cache
def _tell_group_size(group_size: int) -> None:
    logger.warning(
        "layers in groups of %d inputs run in bfloat16: the kernels take multiples of %d",
        group_size,
        _LANES,
    )


def matrix_parts(weight: Tensor | QuantizedTensor) -> tuple[int, bool, int, int, int, int]:
    """Return what the native side asks of a matrix, which has to live until it has been read."""
    if isinstance(weight, Tensor):
        assert weight.dtype == torch.bfloat16, weight.dtype
        return (16, True, weight.data_ptr(), 0, 0, 0)
    zeros = 0 if weight.zeros is None else weight.zeros.data_ptr()
    codes, scales = weight.codes.data_ptr(), weight.scales.data_ptr()
    return (weight.bits, weight.is_float, codes, scales, zeros, weight.scales.shape[1])
