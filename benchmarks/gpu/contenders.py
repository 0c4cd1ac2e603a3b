"""Ours and transformers' continuous batching, and what each is told on a GPU."""

from typing import Any

from benchmarks.contender import ContenderSpec
from benchmarks.engine.contenders import OURS
from benchmarks.engine.plan import NUM_HELD, ShapePlan
from benchmarks.gpu.figures import PEER
from benchmarks.gpu.plan import QUANTIZATION, GpuPlan

_PEER_MEMORY = 0.5  # of what our process, which is started first, leaves
_STEP_TOKENS = 4096  # new tokens in one step: what keeps a card's multipliers busy


def specs_of(plan: GpuPlan, of_shape: ShapePlan, precision: str) -> list[ContenderSpec]:
    """Return how to start those that have a precision; ours first."""
    specs = [_ours(plan, of_shape, precision)]
    if plan.has_peer and precision == "bf16":
        specs.append(_peer(plan, of_shape))
    return specs


def _ours(plan: GpuPlan, of_shape: ShapePlan, precision: str) -> ContenderSpec:
    options: dict[str, Any] = {
        "device": plan.device,
        "dtype": "bfloat16",
        "quantization": QUANTIZATION[precision],
        "max_model_len": of_shape.max_len,
        "max_adapters": NUM_HELD + 1,
        "max_num_seqs": max(batch.size for batch in of_shape.batches),
        "max_num_batched_tokens": _STEP_TOKENS,
        "kv_memory_bytes": plan.kv_bytes,
    }
    return ContenderSpec(name=OURS, module="quickmatch_embedded", options=options)


def _peer(plan: GpuPlan, of_shape: ShapePlan) -> ContenderSpec:
    largest = of_shape.batches[-1]
    options: dict[str, Any] = {
        "device": plan.device,
        "cache": {"max_memory_percent": _PEER_MEMORY},
        "num_seqs": largest.size,
        "prompt_len": max(largest.prompt_len, *of_shape.prompt_lens),
        "new_tokens": max(batch.new_tokens for batch in of_shape.batches),
    }
    return ContenderSpec(name=PEER, module="transformers_batching", options=options)
