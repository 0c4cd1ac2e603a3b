"""Settings of one engine. "auto" values resolve once, when the engine loads, with their reason."""

from dataclasses import dataclass, field
from typing import Literal

from quickmatch.core.errors import ConfigError
from quickmatch.engine.speculation.config import SpeculationConfig

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
KVCacheDtype = Literal["auto", "int8"]  # auto: the model's
Quantization = Literal["none", "int8", "int4", "int4-asym", "mxfp4", "fp8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How an engine process loads a model and how much it may hold at once."""

    model: str  # a Hugging Face folder or hub id
    dtype: Dtype = "auto"  # the checkpoint's, unless the CPU is slower at it than at float32
    quantization: Quantization = "none"  # of the weights, at load; a quantized folder has its own
    device: str = "auto"  # cuda where there is one, else cpu
    max_model_len: int | None = None  # None: the model's own context
    block_size: int = 16  # tokens a KV block
    kv_memory_bytes: int | None = None  # None: kv_memory_fraction of what is free
    kv_memory_fraction: float = 0.3
    kv_cache_dtype: KVCacheDtype = "auto"  # int8: half the memory a token
    max_kv_tokens: int | None = None  # of one sequence; a longer one gives the rest up
    min_free_memory_bytes: int = 128 << 20  # on the machine; with less, new requests get 503
    max_num_seqs: int = 64  # sequences in one step
    max_num_batched_tokens: int = 1024  # new tokens in one step: the prefill chunk's bound
    max_queue_len: int = 512  # waiting sequences; beyond it a request is refused with 429
    enable_prefix_caching: bool = True
    max_adapters: int = 128  # in memory; of more, the ones that were used longest ago wait on disk
    max_lora_rank: int = 64
    num_threads: int | None = None  # None: one for a small model on a CPU, else all cores
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    seed: int = 0  # only for requests without a seed

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "max_queue_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0.0 < self.kv_memory_fraction <= 1.0:
            raise ConfigError(
                f"kv_memory_fraction is {self.kv_memory_fraction}; it must be above 0, at most 1"
            )
