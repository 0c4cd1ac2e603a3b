"""The three views of a run's findings: a table in the terminal, report.json, report.html."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

from examples.credit_cards.findings import WHO, Findings, Measure, Speculation, percentile
from examples.credit_cards.phases import PHASE_LABELS
from examples.credit_cards.plots import all_plots
from examples.credit_cards.screen import Screen
from quickmatch.tuning.metrics import Score

Row = tuple[str, ...]
TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_report(found: Findings, folder: Path) -> Path:
    """Write report.json and report.html; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(found.as_json(), indent=2, default=str) + "\n")
    page = folder / "report.html"
    page.write_text(render_page(found), encoding="utf-8")
    return page


def render_page(found: Findings) -> str:
    """Return the whole page; it loads nothing from elsewhere."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    values: dict[str, Any] = {
        "found": found,
        "who": WHO,
        "plots": all_plots(found),
        "quality": quality_rows(found),
        "figures": figure_rows(found),
        "phases": phase_labels(found.speculation),
        "speculation": speculation_rows(found.speculation),
        "setup": json.dumps(found.provenance, indent=2, default=str),
    }
    return template.render(values)


def show(found: Findings, screen: Screen) -> None:
    """Print the tables."""
    screen.say(f"teacher: {found.lessons.teacher}")
    held_out = f"On {found.quality.num_rows} held-out applicants (95 % interval)"
    screen.table(held_out, ["", *WHO], quality_rows(found))
    screen.table("Speed and size", ["", ""], figure_rows(found))
    labels = phase_labels(found.speculation)
    screen.table("Speculation, one caller", ["", *labels], speculation_rows(found.speculation))


def quality_rows(found: Findings) -> list[Row]:
    """One row a measure: before, after, teacher."""
    rows: list[Row] = [
        (m.label, *(_estimate(m, m.by[who]) if who in m.by else "–" for who in WHO))
        for m in found.quality.measures
    ]
    openings = found.quality.num_openings
    return [*rows, ("openings", *(str(openings.get(who, "–")) for who in WHO))]


def phase_labels(found: Speculation) -> list[str]:
    """The columns of `speculation_rows`."""
    return [PHASE_LABELS[phase.name] for phase in found.phases]


def speculation_rows(found: Speculation) -> list[Row]:
    """One row a figure: each phase's."""
    phases = found.phases
    latencies = [[answer.total_s for answer in phase.answers] for phase in phases]
    return [
        ("hit rate", *(_rate(phase.counts.hit_rate) for phase in phases)),
        ("drafted by the head", *(_rate(phase.head_share) for phase in phases)),
        ("tokens a forward", *(f"{phase.counts.accepted_length or 1.0:.2f}" for phase in phases)),
        ("latency, p50", *(_ms(percentile(values, 50)) for values in latencies)),
        ("tokens/s", *(f"{phase.tokens_per_s:,.0f}" for phase in phases)),
        ("speed-up against plain", *(_times(found.speed_up(phase)) for phase in phases)),
        ("of decoding, by the engine", *(_times(phase.counts.speed_up) for phase in phases)),
        ("tokens in the index", *(f"{phase.index_tokens:,}" for phase in phases)),
    ]


def figure_rows(found: Findings) -> list[Row]:
    """Speed, size and the switch: what, value."""
    return list(_figures(found))


def _figures(found: Findings) -> Iterator[Row]:
    speed, switch, memory = found.speed, found.switch, found.memory
    first, cached = (percentile(v, 50) for v in (speed.first_s, speed.cached_s))
    yield "job done → first token from the adapter", f"{switch.live_s:.2f} s"
    yield (
        "requests of others during the switch",
        f"{len(switch.answers)}, {len(switch.failures)} failed",
    )
    yield (
        "latency, first call, p50 / p95",
        f"{_ms(first)} / {_ms(percentile(speed.first_s, 95))}",
    )
    yield (
        "time to first token, p50 / p95",
        f"{_ms(percentile(speed.ttft_s, 50))} / {_ms(percentile(speed.ttft_s, 95))}",
    )
    yield "latency, cached call, p50", f"{_ms(cached)} ({first / cached:.0f} times faster)"
    yield "one caller", f"{speed.tokens_per_s:,.0f} tokens/s"
    yield (
        f"{found.quality.concurrency} callers",
        f"{found.quality.tokens_per_s:,.0f} tokens/s",
    )
    drafted = found.speculation
    yield (
        "same text with drafting as without",
        f"{drafted.num_same} of {drafted.num_compared}",
    )
    yield "pause of the engine for a new head", _ms(drafted.swap_s)
    yield (
        "requests of others while it came",
        f"{drafted.num_during_swap}, {drafted.num_failed} failed",
    )
    yield "memory of the engine", f"{memory.engine_rss / 2**20:,.0f} MiB"
    yield (
        "base model / adapter",
        f"{memory.model / 2**20:.1f} MiB / {memory.adapter / 2**20:.2f} MiB",
    )
    yield "whole run", f"{found.wall_s:.0f} s"


def _rate(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _times(factor: float | None) -> str:
    return "–" if factor is None else f"{factor:.2f} ×"


def _estimate(measure: Measure, e: Score) -> str:
    if measure.unit == "%":
        return f"{100 * e.value:.1f} % ({_percent(e.low)}–{_percent(e.high)})"
    return f"{_short(e.value)} ({_short(e.low)}–{_short(e.high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms" if seconds < 0.1 else f"{1000 * seconds:,.0f} ms"
