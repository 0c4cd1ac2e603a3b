"""Every bar of the GPU path in one run: `python -m benchmarks.gpu`, or `make bench-gpu`.

    python -m benchmarks.gpu                                  # all of it: results/gpu.json
    python -m benchmarks.gpu --quick --shapes llama-1b        # into .logs/, not into results/
    python -m benchmarks.gpu --precisions bf16 --no-peer

First the tests that are marked for the card; a wrong kernel is not timed. Then a shape and a
precision at a time: ours and transformers' continuous batching are started together and take
turns. Models are random, drawn on the card and written once (18 GB of disk for both shapes).
With no card that will do, it says what is needed, measures nothing and exits with 2.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contender import LOGS
from benchmarks.engine.contenders import OURS
from benchmarks.engine.figures import bandwidth_row, own_rows
from benchmarks.engine.own import measure_own
from benchmarks.engine.plan import ShapePlan
from benchmarks.engine.running import Running, start
from benchmarks.engine.turns import Turns
from benchmarks.gpu import card
from benchmarks.gpu.checks import run_tests
from benchmarks.gpu.contenders import specs_of
from benchmarks.gpu.figures import (
    CHECKS,
    missing_row,
    prefill_rows,
    rate_rows,
)
from benchmarks.gpu.plan import MEMORY_GIB, GpuPlan, parse_arguments
from benchmarks.harness import RESULTS, Report, interleave, run_benchmark
from benchmarks.models import make_model
from benchmarks.rows import single

_PREFILL_TURNS = 10


class Bench:
    """One run: what it has found so far, and where that goes."""

    def __init__(self, report: Report, plan: GpuPlan, folder: Path) -> None:
        self._report, self._plan, self._folder = report, plan, folder
        self._device = torch.device(plan.device)

    def measure(self) -> None:
        """Fill the report; what is found is written shape by shape."""
        if self._device.type == "cuda":
            self._report.provenance["hardware"]["gpu"] = card.facts(self._device)
        if self._plan.is_checked:
            _say("tests on the card")
            LOGS.mkdir(exist_ok=True)
            self._report.add(single(CHECKS, [run_tests(LOGS)], ""))
        self._report.ceilings = card.measure_ceilings(self._device)
        for of_shape in self._plan.shapes:
            self._measure_prefill(of_shape)
            self._free_memory()
            usable = card.precisions_of(self._plan.precisions, self._device)
            for precision, reason in usable.items():
                _say(f"{of_shape.shape.name}, {precision}")
                if reason:
                    self._report.add(missing_row(of_shape.shape.name, precision, reason))
                else:
                    self._measure(of_shape, precision)
                self._report.write(self._folder)

    def _free_memory(self) -> None:
        """Give the card's memory back: the processes that come need it."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _measure_prefill(self, of_shape: ShapePlan) -> None:
        from benchmarks.gpu.prefill import PrefillCase, take_turns  # they import triton

        name = of_shape.shape.name
        for length in self._plan.prefill_lens:
            _say(f"{name}, attention of {length} tokens")
            case = PrefillCase(of_shape.shape, length, device=self._device, dtype=torch.bfloat16)
            taken = take_turns(case, self._device, repetitions=_PREFILL_TURNS)
            self._report.add(*prefill_rows(name, length, taken))
            for who, values in taken.items():
                kept = self._report.samples.setdefault(who, {})
                kept[f"{name}: attention of {length} tokens, ms"] = values

    def _measure(self, of_shape: ShapePlan, precision: str) -> None:
        name, own = of_shape.shape.name, {}
        model = make_model(of_shape.shape, seed=self._plan.seed, device=self._plan.device)
        self._free_memory()
        with self._running(of_shape, precision, model) as group:
            able = [one for one in group.values() if one.is_running]
            samples = interleave(
                {one.name: Turns(one, of_shape, self._plan.seed) for one in able},
                repetitions=of_shape.repetitions,
                warm_up=of_shape.warm_up,
                on_turn=lambda i, who: _say(f"  {'warm-up' if i < 0 else f'turn {i + 1}'}: {who}"),
            )
            if precision == "bf16":
                own = measure_own(group[OURS].take(), of_shape, model, self._plan.seed)
        info = group[OURS].info
        self._report.add(*rate_rows(of_shape, precision, samples, group))
        copied = self._report.ceilings["copy_gb_per_s"]
        judged = precision == "bf16"
        self._report.add(bandwidth_row(name, precision, samples[OURS], info, copied, judged=judged))
        self._report.add(*own_rows(name, precision, own))
        self._report.peers[f"{name} {precision}"] = {
            one.name: one.reason or one.info for one in group.values()
        }
        for who, values in samples.items():
            kept = self._report.samples.setdefault(who, {})
            kept.update({f"{name} {precision}: {one}": taken for one, taken in values.items()})

    @contextmanager
    def _running(
        self, of_shape: ShapePlan, precision: str, model: Path
    ) -> Iterator[dict[str, Running]]:
        """Start those that have the precision, for the length of the block."""
        group: dict[str, Running] = {}
        try:
            for spec in specs_of(self._plan, of_shape, precision):
                log = f"gpu-{spec.name}-{of_shape.shape.name}-{precision}"
                one = group[spec.name] = Running(spec.name)
                start(one, replace(spec, log=log), model)
            yield group
        finally:
            for one in group.values():
                one.close()


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    plan, told = parse_arguments(argv)
    reason = card.why_not(MEMORY_GIB)
    if reason is not None:
        _say(f"bench-gpu: {reason}; nothing was measured")
        return 2
    folder = RESULTS if plan.is_whole else LOGS
    arguments: dict[str, Any] = vars(told)
    return run_benchmark(
        "gpu", arguments, lambda report: Bench(report, plan, folder).measure(), folder=folder
    )


if __name__ == "__main__":
    sys.exit(main())
