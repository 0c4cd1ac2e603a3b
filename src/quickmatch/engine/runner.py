"""The model side of the engine: loads a model, and runs one step batch at a time.

Owns the weights, the KV memory, the adapters and the sampler; knows no queue and no text. What
EngineConfig leaves on "auto" (device, dtype, KV size, context length) is decided here, once,
and logged with its reason.
"""

import logging
import time
from pathlib import Path

import torch

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.adapter_bank import AdapterBank
from quickmatch.engine.adapters import Adapter, read_adapter
from quickmatch.engine.batch import (
    Sampled,
    SampleState,
    Span,
    StepBatch,
    StepResult,
    rows_to_sample,
)
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.device import auto_num_threads, choose_device, num_usable_cores
from quickmatch.engine.fingerprint import fingerprint_as_base
from quickmatch.engine.fit import check_fit, check_room, told_with_remedy, weight_bytes
from quickmatch.engine.folder import resolve_model
from quickmatch.engine.forward_pass import PassOutput, PassSize, make_pass
from quickmatch.engine.generation import eos_token_ids
from quickmatch.engine.grammar import Grammars
from quickmatch.engine.kv_cache import free_memory_bytes, size_kv_cache
from quickmatch.engine.model_config import ModelConfig, read_model_config
from quickmatch.engine.native_pass import why_not_native
from quickmatch.engine.precision import choose_dtype
from quickmatch.engine.quantization.formats import find_format
from quickmatch.engine.sampler import Sampler
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.speculation.draft_model import ModelDrafter
from quickmatch.engine.speculation.head_loading import load_head
from quickmatch.engine.speculation.kept_rows import DraftRequest
from quickmatch.engine.speculation.model_drafters import (
    BASE,
    Head,
    ModelDrafters,
    SmallModel,
)
from quickmatch.engine.speculation.timing import timing_batch
from quickmatch.engine.speculation.tree import DraftTree
from quickmatch.engine.speculation.verify import verify

logger = logging.getLogger(__name__)


class ModelRunner:
    """A loaded model. Raises ModelLoadError or ConfigError from the constructor."""

    def __init__(self, config: EngineConfig) -> None:
        started = time.perf_counter()
        self.device = choose_device(config.device)
        self.folder = resolve_model(config.model)
        if config.num_threads is not None or self.device.type == "cpu":
            torch.set_num_threads(config.num_threads or auto_num_threads(self.folder))
        self.model_config: ModelConfig = read_model_config(self.folder)
        self.dtype = choose_dtype(
            config.dtype,
            self.model_config.dtype,
            self.device,
            has_native=can_run_natively(self.model_config, config.block_size, self.device),
        )
        self.vocab_size = self.model_config.vocab_size
        self.eos_token_ids = eos_token_ids(self.folder)
        self.grammars = Grammars(self.folder, self.vocab_size, self.eos_token_ids)
        self._base_fingerprint = fingerprint_as_base(self.folder)
        self._max_lora_rank = config.max_lora_rank
        self._min_free_bytes = config.min_free_memory_bytes
        with told_with_remedy(config.model):
            with torch.inference_mode():
                self._build(config)
            self.drafters = ModelDrafters(self._draft_model(config.speculation))
        self._sampler = Sampler()
        self._bank = AdapterBank(config.max_adapters)
        self.load_s = time.perf_counter() - started
        logger.info(
            "loaded %s in %.2f s: %.1f MB of weights, %d KV blocks of %d tokens (%.1f MB)",
            self.folder,
            self.load_s,
            self.model_bytes / 1e6,
            self.num_blocks,
            self.block_size,
            self.kv_bytes / 1e6,
        )

    def _build(self, config: EngineConfig) -> None:
        model, dtype, device = self.model_config, self.dtype, self.device
        form = None if config.quantization == "none" else find_format(config.quantization)
        num_bytes = weight_bytes(self.folder, model, dtype=dtype, form=form)
        free_bytes = free_memory_bytes(device)
        check_fit(num_bytes, free_bytes, config.model, device)
        size = size_kv_cache(config, model, dtype=dtype, free_bytes=free_bytes - num_bytes)
        self.block_size = config.block_size
        self.num_blocks = size.num_blocks
        self.kv_bytes = size.num_bytes
        self.max_model_len = size.max_model_len
        self.kv_limit = size.limit
        self._size = PassSize(
            num_blocks=size.num_blocks,
            block_size=config.block_size,
            max_model_len=size.max_model_len,
            max_num_seqs=config.max_num_seqs,
            has_int8_kv=config.kv_cache_dtype == "int8",
        )
        self._pass = make_pass(
            self.folder,
            model,
            self._size,
            dtype=dtype,
            device=device,
            num_threads=config.num_threads or num_usable_cores(),
            form=form,
        )
        self.model_bytes = self._pass.num_bytes

    def _draft_model(self, speculation: SpeculationConfig) -> SmallModel | None:
        if not speculation.draft_model or "draft_model" not in speculation.drafters:
            return None
        return ModelDrafter(
            resolve_model(speculation.draft_model),
            target=self.model_config,
            target_folder=self.folder,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            dtype=self.dtype,
            device=self.device,
        )

    @property
    def adapters(self) -> list[str]:
        """Version ids of the loaded adapters."""
        return self._bank.ids

    @property
    def num_adapters(self) -> int:
        """Adapters in memory."""
        return len(self._bank.ids)

    @property
    def max_adapters(self) -> int:
        """Adapters that may be in memory at once."""
        return self._bank.max_adapters

    def adapter_row(self, adapter_id: str) -> int:
        """Return the row number for spans of this adapter. Raises KeyError if not loaded."""
        return self._bank.row(adapter_id)

    def read_adapter(self, path: str) -> Adapter:
        """Read a PEFT folder. Changes nothing, so another thread may do it between two steps.

        Raises ModelLoadError on an adapter that does not fit the model, ConfigError on one that
        does not fit the memory.
        """
        self._check_room(path)
        with torch.inference_mode():
            return read_adapter(
                Path(path),
                self.model_config,
                base_fingerprint=self._base_fingerprint,
                max_rank=self._max_lora_rank,
                dtype=self.dtype,
                device=self.device,
            )

    def put_adapter(self, adapter_id: str, adapter: Adapter) -> dict[str, object]:
        """Take in an adapter that was read under a version id, between two steps.

        Returns what it is: row, rank, bytes, targets. Raises Conflict if the id is taken or no
        place is left; then nothing has changed.
        """
        row = self._bank.add(adapter_id)
        try:
            self._pass.put_adapter(row, adapter.layers)
        except BaseException:  # no memory for it, above all: it can be asked for again
            self._bank.remove(adapter_id)
            raise
        self.drafters.set_row(adapter_id, row)
        return {
            "row": row,
            "rank": adapter.rank,
            "bytes": adapter.num_bytes,
            "targets": list(adapter.targets),
        }

    def unload_adapter(self, adapter_id: str, *, keeps_head: bool = False) -> None:
        """Forget an adapter that no running sequence uses, and its head unless it is to stay.

        Raises KeyError if it is unknown.
        """
        row = self._bank.remove(adapter_id)
        self._pass.drop_adapter(row)
        if keeps_head:
            self.drafters.forget_row(row)
        elif adapter_id in self.drafters.versions:
            self.drafters.drop_head(adapter_id)

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> StepResult:
        """Run one step: write its tokens' KV, and choose tokens for every span that asks.

        Drafts are verified, and the KV of accepted nodes is moved to their places.
        """
        is_watched = bool(self.drafters) and any(span.is_watched for span in batch.spans)
        aux_layers = self.drafters.aux_layers if is_watched else ()
        out = self._forward(batch, rows_to_sample(batch.spans), aux_layers)
        logits = out.logits
        sampled: list[Sampled | None] = [None] * len(batch.spans)
        if logits is not None:
            asking = [i for i, span in enumerate(batch.spans) if span.sample is not None]
            spans = [batch.spans[i] for i in asking]
            states = [span.sample for span in spans if span.sample is not None]
            trees = [span.tree for span in spans]
            chosen = verify(self._sampler, states, trees, logits, best=out.best)
            for index, one in zip(asking, chosen, strict=True):
                sampled[index] = one
            self._move_accepted(batch, sampled)
        if not is_watched:
            return StepResult(sampled)
        started = time.perf_counter()
        self.drafters.observe(batch, sampled, out.aux)
        return StepResult(sampled, told_s=time.perf_counter() - started)

    def _forward(
        self, batch: StepBatch, rows: list[int], aux_layers: tuple[int, ...] = ()
    ) -> PassOutput:
        for sequence_id in batch.preempted:
            self.drafters.forget(sequence_id)  # while its slots hold what they did
        for eviction in batch.evictions:
            self.drafters.forget(eviction.sequence_id)
            self._pass.evict(eviction)
        return self._pass.run(batch, rows, aux_layers)

    def _move_accepted(self, batch: StepBatch, sampled: list[Sampled | None]) -> None:
        """Node i lies behind i others; one that was accepted belongs right behind its parent."""
        sources: list[int] = []
        targets: list[int] = []
        for span, one in zip(batch.spans, sampled, strict=True):
            if one is None or span.tree is None:
                continue
            for place, node in enumerate(one.accepted):
                if node != place:
                    sources.append(batch.slots[span.start + 1 + node])
                    targets.append(batch.slots[span.start + 1 + place])
        if sources:
            self._pass.move(sources, targets)

    @torch.inference_mode()
    def logits(self, batch: StepBatch) -> torch.Tensor | None:
        """Run the model and return the logits [num_sampled, vocab]; None if no span samples."""
        logits = self._forward(batch, rows_to_sample(batch.spans)).logits
        return None if logits is None else logits.clone()

    @torch.inference_mode()
    def features(
        self, batch: StepBatch, aux_layers: tuple[int, ...], rows: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a head is trained on.

        Of every row of the batch the hidden states entering `aux_layers`, side by side
        [num_tokens, len(aux_layers) * hidden]; of `rows` the target's logits [len(rows), vocab];
        both in the model's dtype.
        """
        out = self._forward(batch, rows, aux_layers)
        assert out.logits is not None
        return torch.cat(out.aux, dim=-1), out.logits.clone()

    # ---- drafts

    def read_draft(self, path: str) -> Head:
        """Read a trained head. Changes nothing, so another thread may do it between two steps.

        Raises ModelLoadError on a head that does not fit the model, ConfigError on one that does
        not fit the memory.
        """
        self._check_room(path)
        with torch.inference_mode():
            return load_head(
                Path(path),
                self._pass,
                model=self.model_config,
                size=self._size,
                dtype=self.dtype,
                device=self.device,
            )

    def put_draft(self, adapter: str, draft: str, head: Head) -> None:
        """Let a head that was read draft for an adapter (BASE: for the base model) from now on.

        Where the adapter's weights are not in memory, it is from when they are.
        """
        row = -1 if adapter == BASE else self._bank.find(adapter)
        self.drafters.put_head(adapter, row, draft, head)

    @property
    def draft_versions(self) -> dict[str, str]:
        """Version ids of the loaded heads, by adapter version id."""
        return self.drafters.versions

    def can_draft(self, adapter_row: int, *, is_watched: bool) -> bool:
        """Whether a model drafter can draft for sequences of this adapter.

        is_watched: whether heads have been told of all the sequence's rows.
        """
        return self.drafters.can_draft(adapter_row, is_watched=is_watched)

    def forget(self, sequence_id: int) -> None:
        """Drop what the model drafters keep of a sequence."""
        self.drafters.forget(sequence_id)

    def unload_draft(self, adapter: str) -> None:
        """Forget the head of an adapter. Raises ConfigError if there is none."""
        self.drafters.drop_head(adapter)

    @torch.inference_mode()
    def draft(
        self,
        requests: list[DraftRequest],
        *,
        depth: int,
        width: int,
        max_nodes: int,
        least_path: float,
    ) -> list[DraftTree]:
        """Have the model drafters go on with these sequences."""
        return self.drafters.draft(
            requests, depth=depth, width=width, max_nodes=max_nodes, least_path=least_path
        )

    def _check_room(self, path: str) -> None:
        if self.device.type == "cpu":
            check_room(Path(path), self.free_memory_bytes() - self._min_free_bytes)

    def free_memory_bytes(self) -> int:
        """Return what is left of the machine's memory, or the container's."""
        return free_memory_bytes(torch.device("cpu"))

    # ---- before any sequence runs

    def warm_up(self) -> None:
        """Run a prefill and a decode, so that the first request finds kernels made.

        Writes to the first block's slots: to be called before any sequence runs.
        """
        length = min(self.block_size, self.max_model_len - 1)
        state = SampleState(SamplingParams(temperature=0.0), 0, [0] * length)
        for context_len, num_tokens in ((0, length), (length - 1, 1)):
            positions = list(range(context_len, context_len + num_tokens))
            span = Span(0, num_tokens, context_len, [0], -1, state)
            self.run(StepBatch([0] * num_tokens, positions, positions, [span]))

    def time_step(self, num_seqs: int, num_rows: int) -> float:
        """Return the seconds of a step that verifies drafts of num_rows rows in all.

        Writes to slots like `warm_up`. Raises ConfigError if there are too few of them.
        """
        batch = timing_batch(
            num_seqs, num_rows, self.num_blocks, self.block_size, self.max_model_len
        )
        started = time.perf_counter()
        self.run(batch)
        return time.perf_counter() - started


def can_run_natively(model: ModelConfig, block_size: int, device: torch.device) -> bool:
    """Return whether the native decoder could run a model in bfloat16."""
    return why_not_native(model, block_size, dtype=torch.bfloat16, device=device) is None
