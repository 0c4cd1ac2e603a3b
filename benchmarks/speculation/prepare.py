"""Makes what a run needs, once: targets, the generic draft model, heads, and who answers what.

What cannot be made (no data folder, a failed job) becomes a row with its reason, and the run goes
on with the rest.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import Row
from benchmarks.speculation.arms import PLAIN, Parts, our_spec
from benchmarks.speculation.bench import Bench
from benchmarks.speculation.generic_draft import make_generic_draft
from benchmarks.speculation.heads import HeadFailed, make_head, metrics_of
from benchmarks.speculation.streams import (
    Streams,
    credit_items,
    make_streams,
    mixed_items,
    training_mixture,
)
from benchmarks.speculation.targets import (
    CREDIT_RECIPE,
    DEEP_RECIPE,
    MIXED_RECIPE,
    make_target,
)
from benchmarks.speculation.workloads import CREDIT, CREDIT_DEEP, NoData, Workload

_NEED_MIXED = ("mixed", "prose", "prediction", "exactness", "drift")
_HEAD_SETTINGS = {"epochs": 8}  # the job's own choice is a tenth of it, for a loop that goes on


def prepare(bench: Bench) -> None:
    """Fill `bench.parts` and `bench.streams`."""
    with bench.screen.stage("prepare", "targets, draft model, heads; made once, then kept"):
        draft = _generic_draft(bench)
        workload = credit_items(bench.plan)
        for section, recipe in ((CREDIT, CREDIT_RECIPE), (CREDIT_DEEP, DEEP_RECIPE)):
            if section == CREDIT or section in bench.plan.sections:
                target = make_target(recipe, workload.train, bench.screen)
                _add(bench, section, target, [workload], bench.plan.num_past, draft)
        if set(_NEED_MIXED) & set(bench.plan.sections):
            _prepare_mixed(bench, draft)


def _prepare_mixed(bench: Bench, draft: Path | None) -> None:
    workloads, missing = mixed_items(bench.plan)
    for name, reason in missing.items():
        _tell_missing(bench, f"workload {name}", reason)
    target = make_target(MIXED_RECIPE, training_mixture(workloads), bench.screen)
    chosen = list(workloads.values())
    _add(bench, "mixed", target, chosen, bench.plan.num_past_a_workload, draft)


def _add(
    bench: Bench,
    name: str,
    target: Path,
    workloads: Sequence[Workload],
    num_past: int,
    draft: Path | None,
) -> None:
    spec = our_spec(PLAIN, Parts(target))
    streams = make_streams(target, workloads, num_past, spec, bench.encoder)
    bench.streams[name] = streams
    bench.parts[name] = Parts(target, _head(bench, target, streams), draft)
    bench.screen.say(f"{name}: {target.name}")


def _head(bench: Bench, target: Path, streams: Streams) -> Path | None:
    try:
        head = make_head(target, streams.past_items, _HEAD_SETTINGS, bench.screen)
    except HeadFailed as error:
        _tell_missing(bench, f"head of {target.name}", str(error))
        return None
    bench.report.peers[f"head of {target.name}"] = metrics_of(head)
    return head


def _generic_draft(bench: Bench) -> Path | None:
    try:
        return make_generic_draft(bench.screen)
    except NoData as error:
        _tell_missing(bench, "generic draft model", str(error))
        return None


def _tell_missing(bench: Bench, what: str, reason: str) -> None:
    bench.report.add(Row(measure=what, value=None, unit="", note=reason))
