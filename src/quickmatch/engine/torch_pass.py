"""A pass made of torch's operations (forward_pass.py): any device, any format."""

from pathlib import Path

import torch

from quickmatch.engine.adapter_steps import AdapterSteps
from quickmatch.engine.attention import TorchAttention
from quickmatch.engine.decoder import Decoder
from quickmatch.engine.decoder_pass import DecoderPass
from quickmatch.engine.forward_pass import PassSize
from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.loader import load_weights
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.quantization.formats import WeightFormat
from quickmatch.engine.rope import RotaryTable


class TorchPass(DecoderPass):
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
        weights = load_weights(folder, model, dtype=dtype, device=device, form=form)
        cache = KVCache(model, size.num_blocks, size.block_size, dtype=dtype, device=device)
        rotary = RotaryTable(
            model.rope, model.head_dim, size.max_model_len, dtype=dtype, device=device
        )
        attention = TorchAttention(
            model.num_heads, model.num_kv_heads, model.head_dim, size.block_size
        )
        decoder = Decoder(model, weights, rotary, cache, attention)
        adapters = AdapterSteps(dtype=dtype, device=device)
        super().__init__(model, weights, decoder, attention, cache, adapters, device=device)
