"""Which calls are measured, which were asked before, and which train: disjoint, made once a run.

Owns the split of each workload's items: a train part for targets, heads and warm-up traffic, and a
test part that nothing has seen. Calls whose plain answer goes in circles are in neither.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contender import ContenderSpec
from benchmarks.speculation.answers import Answered, answered
from benchmarks.speculation.calls import Call, Encoder
from benchmarks.speculation.plan import Plan
from benchmarks.speculation.targets import MIXED_ROWS
from benchmarks.speculation.workloads import (
    CODE_EDITS,
    Item,
    NoData,
    Workload,
    credit,
    edits,
    from_files,
)


@dataclass(frozen=True, slots=True)
class Streams:
    """One target's calls."""

    past_items: list[Item]  # those of `past`
    past: Answered  # train calls that arms have seen, with the target's answers
    test: Answered

    def round_robin(
        self, names: Sequence[str], num_rounds: int, each: int, num_used: int = 0
    ) -> list[list[Call]]:
        """Return disjoint rounds with `each` calls of every workload, shuffled.

        num_used: calls of a workload that an earlier stream took. A workload with too
        few sound calls gives fewer in each round.
        """
        rounds: list[list[Call]] = [[] for _ in range(num_rounds)]
        for name in names:
            calls = self.test.of(name)[num_used:]
            size = min(each, len(calls) // num_rounds)
            for index, of_round in enumerate(rounds):
                of_round += calls[index * size : (index + 1) * size]
        for index, of_round in enumerate(rounds):
            random.Random(index).shuffle(of_round)
        return rounds


def credit_items(plan: Plan) -> Workload:
    """The credit explanations."""
    return credit(plan.num_train, plan.num_test, plan.seed)


def mixed_items(plan: Plan) -> tuple[dict[str, Workload], dict[str, str]]:
    """Return the workloads of the mixed stream that can be had, and why the others cannot."""
    found: dict[str, Workload] = {}
    missing: dict[str, str] = {}
    for name, num_train in MIXED_ROWS.items():
        num_test = plan.num_test_a_workload
        try:
            if name == CODE_EDITS:
                found[name] = edits(num_train, num_test, plan.seed)
            else:
                found[name] = from_files(name, num_train, num_test, plan.seed)
        except NoData as error:
            missing[name] = str(error)
    return found, missing


def training_mixture(workloads: Mapping[str, Workload]) -> list[Item]:
    """Return what the mixed target learns from, all workloads that there are, whatever is run."""
    return [item for name in MIXED_ROWS if name in workloads for item in workloads[name].train]


def make_streams(
    target: Path,
    workloads: Sequence[Workload],
    num_past: int,
    spec: ContenderSpec,
    encoder: Encoder,
) -> Streams:
    """Ask the target plainly, and keep what is sound."""
    items = [item for w in workloads for item in w.train[:num_past]]
    random.Random(0).shuffle(items)  # traffic of several workloads comes mixed
    past = answered(target, encoder.calls(items), spec)
    test = answered(target, encoder.calls([i for w in workloads for i in w.test]), spec)
    return Streams([items[i] for i in past.indexes], past, test)
