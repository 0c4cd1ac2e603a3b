"""A pass made of torch's operations (forward_pass.py): any device, any format.

Owns the weights, keys and values and adapters of one model, and joins what a step needs of them:
inputs.py turns its lists into tensors, decoder.py runs the layers.
"""

from pathlib import Path

import torch

from quickmatch.engine.adapter_steps import AdapterSteps
from quickmatch.engine.attention import TorchAttention
from quickmatch.engine.batch import Eviction, StepBatch
from quickmatch.engine.decoder import Decoder
from quickmatch.engine.forward_pass import PassOutput, PassSize
from quickmatch.engine.inputs import make_inputs
from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.loader import load_weights
from quickmatch.engine.lora import LoraLayers
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.quantization.formats import WeightFormat
from quickmatch.engine.rope import RotaryTable


class TorchPass:
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
        self.num_bytes = weights.num_bytes
        self.embedding = weights.embedding
        self._device = device
        self._windows = frozenset(model.windows)
        self._cache = KVCache(model, size.num_blocks, size.block_size, dtype=dtype, device=device)
        rotary = RotaryTable(
            model.rope, model.head_dim, size.max_model_len, dtype=dtype, device=device
        )
        self._attention = TorchAttention(
            model.num_heads, model.num_kv_heads, model.head_dim, size.block_size
        )
        self._decoder = Decoder(model, weights, rotary, self._cache, self._attention)
        self._adapters = AdapterSteps(dtype=dtype, device=device)

    def run(
        self, batch: StepBatch, rows: list[int], aux_layers: tuple[int, ...] = ()
    ) -> PassOutput:
        """See ForwardPass.run. Logits are in the model's dtype."""
        inputs = make_inputs(
            batch,
            attention=self._attention,
            windows=self._windows,
            lora=self._adapters.step(batch.spans, len(batch.token_ids)),
            device=self._device,
            wanted=rows,
            aux_layers=aux_layers,
        )
        return PassOutput(self._decoder.forward(inputs), inputs.aux)

    def move(self, sources: list[int], targets: list[int]) -> None:
        """See ForwardPass.move."""
        moves = torch.tensor([sources, targets], device=self._device)
        self._cache.move(moves[0], moves[1])

    def evict(self, eviction: Eviction) -> None:
        """See ForwardPass.evict."""
        self._cache.evict(eviction)

    def put_adapter(self, row: int, layers: LoraLayers) -> None:
        """See ForwardPass.put_adapter."""
        self._adapters.put(row, layers)

    def drop_adapter(self, row: int) -> None:
        """See ForwardPass.drop_adapter."""
        self._adapters.drop(row)
