"""Every bar of speculation in one run: `python -m benchmarks.speculation`.

    python -m benchmarks.speculation                     # all of it: results/speculation.json
    python -m benchmarks.speculation --quick             # a few minutes, into .logs/
    python -m benchmarks.speculation --sections credit --arms plain,suffix --contenders none

The first run also trains what it measures (two targets, a generic draft model, a head for each
target) and makes the peers' environments; both are kept. QUICKMATCH_BENCH_DATA is the folder of
`workloads/` and `pretrain/`; without it, what needs them is reported as missing.
"""

import sys

from rich.console import Console

from benchmarks.ceilings import measure_ceilings
from benchmarks.contender import LOGS
from benchmarks.harness import RESULTS, Report, run_benchmark
from benchmarks.speculation.bench import Bench
from benchmarks.speculation.calls import Encoder
from benchmarks.speculation.drift import measure_drift
from benchmarks.speculation.host import measure_host_costs
from benchmarks.speculation.plan import (
    CREDIT_SECTIONS,
    PREDICTION,
    ROLLBACK,
    Plan,
    parse_arguments,
)
from benchmarks.speculation.plots import write_plots
from benchmarks.speculation.prepare import prepare
from benchmarks.speculation.rollback import measure_rollback
from benchmarks.speculation.sections import (
    measure_credit,
    measure_exactness,
    measure_mixed,
    measure_mixed_wide,
)
from benchmarks.speculation.workloads import MIXED, MIXED_WIDE, PROSE
from examples.credit_cards.screen import Screen

_NEEDS_MIXED = {MIXED, PROSE, PREDICTION}


def measure(report: Report, plan: Plan, *, only_prepare: bool, is_whole: bool) -> None:
    """Fill the report, section by section; each writes what it has found."""
    screen = Screen(Console(stderr=True, highlight=False, soft_wrap=True))
    bench = Bench(plan, report, screen, RESULTS if is_whole else LOGS, Encoder())
    prepare(bench)
    if only_prepare:
        return
    before = measure_ceilings()
    for section in CREDIT_SECTIONS:
        if section in plan.sections:
            measure_credit(bench, section)
    if _NEEDS_MIXED & set(plan.sections) and MIXED in bench.parts:
        measure_mixed(bench)
    if MIXED_WIDE in plan.sections and MIXED_WIDE in bench.parts:
        measure_mixed_wide(bench)
    if "exactness" in plan.sections:
        measure_exactness(bench)
    if "host" in plan.sections:
        measure_host_costs(bench)
    if "drift" in plan.sections:
        measure_drift(bench)
    if ROLLBACK in plan.sections:
        measure_rollback(bench)
    report.ceilings = measure_ceilings().or_better(before).as_json()
    write_plots(report, bench.folder)


def main() -> int:
    """Run the benchmark; return the exit status."""
    plan, told = parse_arguments()
    is_whole = plan.is_whole and not told.prepare
    return run_benchmark(
        "speculation",
        vars(told) | {"seed": plan.seed},
        lambda report: measure(report, plan, only_prepare=told.prepare, is_whole=is_whole),
        folder=RESULTS if is_whole else LOGS,
    )


if __name__ == "__main__":
    sys.exit(main())
