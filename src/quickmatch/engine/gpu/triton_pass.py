"""A pass made of Triton's kernels and torch's products, for GPUs (forward_pass.py).

Owns the graphs of decode steps, beside what a DecoderPass owns. A step in which every sequence has
one token, or a draft, is replayed (decode_steps.py); any other is launched operation by operation.
"""

from functools import partial
from pathlib import Path

import torch

from quickmatch.engine.batch import Span, StepBatch
from quickmatch.engine.decoder_pass import DecoderPass
from quickmatch.engine.forward_pass import PassOutput, PassSize
from quickmatch.engine.gpu.attention import TritonAttention
from quickmatch.engine.gpu.decode_steps import DecodeSteps, StepLimits
from quickmatch.engine.gpu.decoder import TritonDecoder
from quickmatch.engine.gpu.linear import make_gpu_linear
from quickmatch.engine.gpu.lora import TritonAdapterSteps
from quickmatch.engine.gpu.tiles import SHORT_TOKENS
from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.loader import load_weights
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.quantization.formats import WeightFormat
from quickmatch.engine.rope import RotaryTable

_INTERPRETED_PROCESSORS = 1  # where there is no device to ask


class TritonPass(DecoderPass):
    """One model's. Raises ModelLoadError from the constructor."""

    def __init__(
        self,
        folder: Path,
        model: ModelConfig,
        size: PassSize,
        *,
        dtype: torch.dtype,
        device: torch.device,
        form: WeightFormat | None = None,
    ) -> None:
        """device: a GPU; a CPU only where the kernels are interpreted, as tests have them."""
        make = partial(make_gpu_linear, dtype=dtype, device=device)
        weights = load_weights(folder, model, dtype=dtype, device=device, form=form, make=make)
        # One block more than sequences have: rows that only pad a step write there.
        cache = KVCache(model, size.num_blocks + 1, size.block_size, dtype=dtype, device=device)
        rotary = RotaryTable(
            model.rope, model.head_dim, size.max_model_len, dtype=dtype, device=device
        )
        attention = TritonAttention(
            model.num_heads,
            model.num_kv_heads,
            model.head_dim,
            size.block_size,
            num_processors=num_processors(device),
        )
        decoder = TritonDecoder(model, weights, rotary, cache, attention)
        adapters = TritonAdapterSteps(model.num_layers, dtype=dtype, device=device)
        super().__init__(model, weights, decoder, attention, cache, adapters, device=device)
        self._decodes = DecodeSteps(
            decoder.forward,
            attention,
            adapters,
            self._windows,
            StepLimits(
                max_num_seqs=size.max_num_seqs,
                max_model_len=size.max_model_len,
                block_size=size.block_size,
                scratch_block=size.num_blocks,
            ),
            device=device,
        )
        self._scratch = size.num_blocks, size.block_size
        if device.type == "cuda":
            self.prepare()

    def prepare(self) -> None:
        """Compile and capture what requests would else wait for: plain decodes, and a chunk."""
        self._decodes.prepare()
        num_tokens, (block, block_size) = SHORT_TOKENS + 1, self._scratch
        span = Span(0, num_tokens, 0, [block] * (num_tokens // block_size + 1), -1, None)
        slots = [block * block_size + i % block_size for i in range(num_tokens)]
        zeros = [0] * num_tokens
        self.run(StepBatch(zeros, zeros, slots, [span]), [num_tokens - 1])

    def run(
        self, batch: StepBatch, rows: list[int], aux_layers: tuple[int, ...] = ()
    ) -> PassOutput:
        """See ForwardPass.run. Logits are in the model's dtype, and hold until the next run."""
        kind = self._decodes.kind_of(batch, aux_layers)
        if kind is not None:
            return self._decodes.run(batch, rows, kind)
        return super().run(batch, rows, aux_layers)


def num_processors(device: torch.device) -> int:
    """Return how many streaming multiprocessors a device has."""
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
