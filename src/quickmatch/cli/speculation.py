"""How `quickmatch get deployment` shows speculation: what it does, what it won, how it adapts.

Owns the wording; the rates are core's. For machines the same facts come as one JSON object beside
the document's own fields.
"""

import time
from typing import Any

from quickmatch.cli import output
from quickmatch.core.errors import ConfigError
from quickmatch.core.speculation_counts import SpeculationCounts, drafter_shares
from quickmatch.core.speculation_settings import SpeculationSettings
from quickmatch.store.adaptation import AdaptationEvent, HeadAdaptation
from quickmatch.store.documents import Deployment, DraftStatus

SHOWN_EVENTS = 12
SHOWN_ADAPTERS = 8
# Fields of the document that the block tells in its own words.
TOLD = ("speculation", "drafts", "draft_status", "adaptation")


def measured(deployment: Deployment) -> dict[str, Any]:
    """Return what speculation did since the engine's start; empty where it is off or not up."""
    report = deployment.engine_info.get("stats", {}).get("speculation")
    if not report:
        return {}
    shares = drafter_shares(report)
    drafters = {
        name: {**source, "share": shares.get(name, 0.0)}
        for name, source in report.get("sources", {}).items()
        if source["num_proposed"]
    }
    adapters = {
        name: {**SpeculationCounts.of(one).figures(), "num_emitted": one["num_emitted"]}
        for name, one in report.get("adapters", {}).items()
    }
    names = ("drafts", "index_tokens", "index_bytes", "num_swaps", "last_swap_s", "num_drifts")
    return {
        **SpeculationCounts.of(report).figures(),
        "drafters": drafters,
        "adapters": adapters,
        **{name: report[name] for name in names if name in report},
    }


def lines(deployment: Deployment) -> list[str]:
    """Return the block that people read."""
    settings = " ".join(f"{key}={value}" for key, value in deployment.speculation.items())
    block = ["speculation:", f"  settings: {settings or 'auto'}", *_rates(deployment)]
    for name, draft in deployment.drafts.items():
        status = deployment.draft_status.get(name)
        block.append(f"  head of {_whose(name)}: {_head(draft, status)}")
    if deployment.speculation.get("adapt") or deployment.adaptation.events:
        block += ["adaptation:", *_adaptation(deployment)]
    return block


def _rates(deployment: Deployment) -> list[str]:
    found = measured(deployment)
    if not found:
        return ["  measured: nothing yet"]
    hit_rate, length, speed_up = map(found.get, ("hit_rate", "accepted_length", "speed_up"))
    rows = [
        f"  hit rate: {_percent(hit_rate)}",
        f"  accepted length: {output.number(length)} tokens a forward",
        f"  speed-up against plain decoding: {output.number(speed_up)} ×",
    ]
    shares = [f"{name} {_percent(d['share'])}" for name, d in found["drafters"].items()]
    rows.append(f"  drafters: {', '.join(shares) or '–'} of the accepted tokens")
    rows += _by_adapter(found["adapters"])
    if "index_tokens" in found:
        size = output.size(found.get("index_bytes", 0))
        rows.append(f"  suffix index: {found['index_tokens']:,} tokens, {size}")
    return rows


def _by_adapter(adapters: dict[str, dict[str, float]]) -> list[str]:
    """Tell them apart where there are several, those with the most tokens first."""
    if len(adapters) < 2:
        return []
    ordered = sorted(adapters.items(), key=lambda item: -item[1]["num_emitted"])
    rows = [
        f"  {_whose(name)}: hit rate {_percent(one.get('hit_rate'))}, "
        f"{output.number(one.get('accepted_length'))} tokens a forward, "
        f"of {one['num_emitted']:,} tokens"
        for name, one in ordered[:SHOWN_ADAPTERS]
    ]
    left = len(ordered) - len(rows)
    return [*rows, f"  and {left} more adapters"] if left else rows


def _head(draft: str, status: DraftStatus | None) -> str:
    if status is None:
        return f"{draft} (PENDING)"
    text = f"{status.draft} {status.state}"
    if status.error:
        return f"{text}: {status.error}"
    if status.load_s is not None:
        text += f", loaded in {status.load_s:.2f} s"
    if status.swap_s is not None:
        text += f", swapped in within {1000 * status.swap_s:.1f} ms"
    return text


def _adaptation(deployment: Deployment) -> list[str]:
    state = deployment.adaptation
    try:
        settings = SpeculationSettings.parse(deployment.speculation)
    except ConfigError as error:  # written by another version; the deployment's error says so too
        return [f"  settings are wrong: {error.message}"]
    rows = [] if settings.adapt else ["  off"]
    rows += [f"  note: {state.note}"] if state.note else []
    for name, head in state.heads.items():
        rows.append(f"  {_whose(name)}: {_phase(head, settings)}")
    if state.events:
        rows += ["  history:", *(f"    {_event(e)}" for e in state.events[-SHOWN_EVENTS:])]
    return rows


def _phase(head: HeadAdaptation, settings: SpeculationSettings) -> str:
    if head.phase == "training":
        return f"training, job {head.job}"
    if head.phase != "collecting":
        return f"{head.phase} {head.draft}"
    text = f"collecting, {head.num_new:,} of {settings.adapt_min_requests:,} new calls"
    wait_s = head.not_before - time.time()
    if wait_s > 0:
        text += f", not before {wait_s:,.0f} s from now"
    return text + (", drifted" if head.drifted_at else "")


def _event(event: AdaptationEvent) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
    figures = " ".join(f"{name}={value:.4g}" for name, value in event.figures.items())
    parts = (event.event, _whose(event.head), event.draft, event.job, event.text, figures)
    return f"{at}  " + " · ".join(part for part in parts if part)


def _whose(name: str) -> str:
    return f"adapter {name}" if name else "the base model"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
