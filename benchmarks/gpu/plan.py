"""How much one run on a GPU measures: every number of the benchmark that is not measured."""

import argparse
from dataclasses import dataclass, replace

from benchmarks.engine.plan import Batch, ShapePlan
from benchmarks.models import LLAMA_1B, LLAMA_8B

PRECISIONS = ("bf16", "int8", "int4", "fp8")
QUANTIZATION = {"bf16": "none", "int8": "int8", "int4": "int4", "fp8": "fp8"}
MEMORY_GIB = 60  # two processes with an 8B model in bf16 and their caches

_BATCHES = (Batch(1, 128, 256), Batch(8, 128, 128), Batch(32, 128, 128))
USUAL = tuple(
    ShapePlan(
        shape=shape,
        repetitions=5,
        warm_up=1,
        batches=_BATCHES,
        prompt_lens=(128, 1024),
        max_len=2048,
        num_steps=30,
    )
    for shape in (LLAMA_1B, LLAMA_8B)
)
_NAMES = tuple(one.shape.name for one in USUAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlan:
    """One run."""

    seed: int = 0
    shapes: tuple[ShapePlan, ...] = USUAL
    precisions: tuple[str, ...] = PRECISIONS
    device: str = "cuda"
    kv_bytes: int = 8 << 30  # of ours
    prefill_lens: tuple[int, ...] = (8192, 16384, 32768)  # tokens of one sequence's attention
    has_peer: bool = True
    is_checked: bool = True  # whether the tests for the card come first

    @property
    def is_whole(self) -> bool:
        """Whether it measures every bar, so that its figures may take the place of the last."""
        return self == GpuPlan(seed=self.seed)


def parse_arguments(argv: list[str] | None = None) -> tuple[GpuPlan, argparse.Namespace]:
    """Read the command line. Exits with a line of usage where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Measure the engine on this machine's GPU."
    )
    parser.add_argument("--shapes", nargs="+", choices=_NAMES, default=list(_NAMES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--no-checks", action="store_true", help="leave the card's tests out")
    parser.add_argument("--quick", action="store_true", help="one turn of few tokens")
    told = parser.parse_args(argv)
    plan = GpuPlan(
        seed=told.seed,
        shapes=tuple(one for one in USUAL if one.shape.name in told.shapes),
        precisions=tuple(one for one in PRECISIONS if one in told.precisions),
        has_peer=not told.no_peer,
        is_checked=not told.no_checks,
    )
    return (_quick(plan) if told.quick else plan), told


def _quick(plan: GpuPlan) -> GpuPlan:
    batches = tuple(Batch(one.size, 32, 16) for one in _BATCHES)
    shapes = tuple(
        replace(one, repetitions=1, warm_up=0, batches=batches, num_steps=3) for one in plan.shapes
    )
    return replace(plan, shapes=shapes, prefill_lens=plan.prefill_lens[:1])
