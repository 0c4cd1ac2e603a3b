"""Makes what a run needs, once: targets, the generic draft model, heads, and who answers what.

What cannot be made (no data folder, a failed job) becomes a row with its reason, and the run goes
on with the rest.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.rows import Row
from benchmarks.speculation.arms import PLAIN, Parts, our_spec
from benchmarks.speculation.bench import Bench
from benchmarks.speculation.generic_draft import make_generic_draft
from benchmarks.speculation.heads import HeadFailed, make_head, metrics_of
from benchmarks.speculation.plan import PREDICTION, ROLLBACK
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
from benchmarks.speculation.widening import widened
from benchmarks.speculation.workloads import (
    CREDIT,
    CREDIT_DEEP,
    CREDIT_WIDE,
    MIXED,
    MIXED_WIDE,
    PROSE,
    Item,
    NoData,
    Workload,
)

_NEED_DEEP = {CREDIT_DEEP, CREDIT_WIDE, ROLLBACK}
_NEED_MIXED = {MIXED, MIXED_WIDE, PROSE, PREDICTION, "exactness", "drift"}
# The job's own choice is a tenth of it, for a loop that goes on.
_HEAD_SETTINGS: dict[str, Any] = {"epochs": 8}
_MIXED_HEAD_SETTINGS: dict[str, Any] = {"epochs": 4}  # of three times as many calls


def prepare(bench: Bench) -> None:
    """Fill `bench.parts` and `bench.streams`."""
    with bench.screen.stage("prepare", "targets, draft model, heads; made once, then kept"):
        draft = _generic_draft(bench)
        workload = credit_items(bench.plan)
        for section, recipe in ((CREDIT, CREDIT_RECIPE), (CREDIT_DEEP, DEEP_RECIPE)):
            if section != CREDIT and not _NEED_DEEP & set(bench.plan.sections):
                continue
            target = make_target(recipe, workload.train, bench.screen)
            num_past = bench.plan.num_past
            streams = _streams(bench, section, target, [workload], num_past)
            head = _head(bench, target, streams.past_items, _HEAD_SETTINGS)
            bench.parts[section] = Parts(target, head, draft)
        if CREDIT_WIDE in bench.plan.sections:
            _widen(bench, CREDIT_DEEP, CREDIT_WIDE, [workload], num_past)
        if _NEED_MIXED & set(bench.plan.sections):
            _prepare_mixed(bench, draft)


def _prepare_mixed(bench: Bench, draft: Path | None) -> None:
    workloads, missing = mixed_items(bench.plan)
    for name, reason in missing.items():
        _tell_missing(bench, f"workload {name}", reason)
    target = make_target(MIXED_RECIPE, training_mixture(workloads), bench.screen)
    chosen = list(workloads.values())
    _streams(bench, MIXED, target, chosen, bench.plan.num_past_a_workload)
    # One head for seven kinds of text: it needs more of each than the index.
    calls = [item for w in chosen for item in w.train[: bench.plan.num_head_a_workload]]
    head = _head(bench, target, calls, _MIXED_HEAD_SETTINGS)
    bench.parts[MIXED] = Parts(target, head, draft)
    if MIXED_WIDE in bench.plan.sections:
        _widen(bench, MIXED, MIXED_WIDE, chosen, bench.plan.num_past_a_workload)


def _widen(
    bench: Bench, narrow: str, wide: str, workloads: Sequence[Workload], num_past: int
) -> None:
    parts = bench.parts[narrow]
    folder = parts.target.with_name(parts.target.name.replace(narrow, wide))
    target, head = widened(parts.target, parts.head, folder)
    _streams(bench, wide, target, workloads, num_past)
    bench.parts[wide] = replace(parts, target=target, head=head)


def _streams(
    bench: Bench, name: str, target: Path, workloads: Sequence[Workload], num_past: int
) -> Streams:
    spec = our_spec(PLAIN, Parts(target))
    streams = make_streams(target, workloads, num_past, spec, bench.encoder)
    bench.streams[name] = streams
    bench.screen.say(f"{name}: {target.name}")
    return streams


def _head(
    bench: Bench, target: Path, calls: Sequence[Item], settings: dict[str, Any]
) -> Path | None:
    try:
        head = make_head(target, calls, settings, bench.screen)
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
