"""Every bar of plain decoding in one run: `python -m benchmarks.engine`.

    python -m benchmarks.engine                          # all of it: results/engine.json
    python -m benchmarks.engine --quick --shapes llama-15m      # into .logs/, not into results/
    python -m benchmarks.engine --shapes qwen3-600m --precisions int4 --contenders llama.cpp

A shape and a precision at a time: ours and every peer that has it are started together, take
turns, and go. What only our engine does is measured beside them. The first run also makes the
models and the peers' forms of them, which are kept.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.ceilings import measure_ceilings
from benchmarks.contender import LOGS
from benchmarks.engine.contenders import OURS
from benchmarks.engine.figures import (
    SAVED_STARTUP,
    STARTUP,
    STRICT,
    bandwidth_row,
    long_name,
    memory_row,
    own_rows,
    peer_rows,
    startup_row,
)
from benchmarks.engine.own import measure_own
from benchmarks.engine.plan import Plan, ShapePlan, parse_arguments
from benchmarks.engine.running import Running, running
from benchmarks.engine.startup import saved_in, seconds_to_first_answer
from benchmarks.engine.turns import Turns, long_prompt
from benchmarks.harness import RESULTS, Report, Samples, interleave, run_benchmark
from benchmarks.models import make_model


class Bench:
    """One run: what it has found so far, and where that goes."""

    def __init__(self, report: Report, plan: Plan, folder: Path) -> None:
        self._report, self._plan, self._folder = report, plan, folder
        # Of ours, for each shape and precision: rates, and what its engine told at its start.
        self._ours: dict[tuple[str, str], tuple[dict[str, list[float]], dict[str, Any]]] = {}

    def measure(self) -> None:
        """Fill the report, a shape and a precision at a time; each writes what it has found."""
        before = measure_ceilings()
        if self._plan.is_own:
            seconds = seconds_to_first_answer()
            self._report.samples[OURS] = {STARTUP: seconds}
            self._report.add(startup_row(seconds))
        for of_shape in self._plan.shapes:
            for precision in self._plan.precisions:
                _say(f"{of_shape.shape.name}, {precision}")
                self._measure(of_shape, precision)
                self._report.write(self._folder)
        self._report.ceilings = measure_ceilings().or_better(before).as_json()
        self._add_comparisons()

    def _measure(self, of_shape: ShapePlan, precision: str) -> None:
        name, own = of_shape.shape.name, {}
        model = make_model(of_shape.shape, seed=self._plan.seed)
        with running(self._plan, of_shape, precision, model) as group:
            samples = self._take_turns(of_shape, group)
            if self._plan.is_own:
                own = measure_own(group[OURS].take(), of_shape, model, self._plan.seed)
        if self._plan.is_own and (name, precision) == STRICT:
            own[SAVED_STARTUP] = seconds_to_first_answer(saved_in(precision, model))
        self._report.add(*peer_rows(of_shape, precision, samples, group))
        self._report.add(*own_rows(name, precision, own))
        self._report.peers[f"{name} {precision}"] = {
            one.name: one.reason or one.info for one in group.values()
        }
        self._ours[name, precision] = samples[OURS], group[OURS].info
        self._keep(f"{name} {precision}", samples)
        self._keep(f"{name} {precision}", {OURS: own})

    def _take_turns(self, of_shape: ShapePlan, group: Mapping[str, Running]) -> Samples:
        able = [one for one in group.values() if one.is_running]
        samples = interleave(
            {one.name: Turns(one, of_shape, self._plan.seed) for one in able},
            repetitions=of_shape.repetitions,
            warm_up=of_shape.warm_up,
            on_turn=lambda i, who: _say(f"  {'warm-up' if i < 0 else f'turn {i + 1}'}: {who}"),
        )
        for one in able:
            seconds = long_prompt(one, of_shape, samples, self._plan.seed)
            if seconds is not None:
                samples[one.name][long_name(of_shape)] = [seconds * 1e3]
        return samples

    def _keep(self, label: str, samples: Samples) -> None:
        for name, values in samples.items():
            kept = self._report.samples.setdefault(name, {})
            kept.update({f"{label}: {measure}": taken for measure, taken in values.items()})

    def _add_comparisons(self) -> None:
        """Add the rows that need the ceilings, or two precisions."""
        copied = self._report.ceilings["copy_gb_per_s"]
        for (shape, precision), (rates, info) in self._ours.items():
            judged = (shape, precision) == STRICT
            row = bandwidth_row(shape, precision, rates, info, copied, judged=judged)
            self._report.add(row)
        for (shape, precision), (_, info) in self._ours.items():
            if precision != "bf16" and (shape, "bf16") in self._ours:
                self._report.add(memory_row(shape, precision, info, self._ours[shape, "bf16"][1]))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main() -> int:
    """Run the benchmark; return the exit status."""
    plan, told = parse_arguments()
    folder = RESULTS if plan.is_whole else LOGS
    return run_benchmark(
        "engine", vars(told), lambda report: Bench(report, plan, folder).measure(), folder=folder
    )


if __name__ == "__main__":
    sys.exit(main())
