"""What the passes around a `Decoder` have in common, whoever computes its attention and products.

Owns the weights, keys and values and adapters of one model. A step is its lists turned into tensors
(inputs.py) and the layers run over them (decoder.py), operation by operation.
"""

from typing import Protocol

import torch

from quickmatch.engine.attention import Attention
from quickmatch.engine.batch import Eviction, Span, StepBatch
from quickmatch.engine.decoder import Decoder
from quickmatch.engine.forward_pass import PassOutput
from quickmatch.engine.inputs import make_inputs
from quickmatch.engine.kv_cache import KVCache
from quickmatch.engine.lora import LoraLayers, LoraStep
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.weights import DecoderWeights


class Adapters(Protocol):
    """Loaded adapters by row, and what they add to a step."""

    def put(self, row: int, layers: LoraLayers) -> None: ...
    def drop(self, row: int) -> None: ...
    def step(self, spans: list[Span], num_tokens: int) -> LoraStep | None: ...


class DecoderPass:
    """One model's; made by torch_pass.py and gpu/triton_pass.py of their own parts."""

    def __init__(
        self,
        model: ModelConfig,
        weights: DecoderWeights,
        decoder: Decoder,
        attention: Attention,
        cache: KVCache,
        adapters: Adapters,
        *,
        device: torch.device,
    ) -> None:
        self.num_bytes = weights.num_bytes
        self.embedding = weights.embedding
        self._device = device
        self._windows = frozenset(model.windows)
        self._decoder = decoder
        self._attention = attention
        self._cache = cache
        self._adapters = adapters

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
