"""The three views of a run's findings: a table in the terminal, report.json, report.html."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

from examples.credit_cards.findings import WHO, Findings, Measure, percentile
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
        "setup": json.dumps(found.provenance, indent=2, default=str),
    }
    return template.render(values)


def show(found: Findings, screen: Screen) -> None:
    """Print the tables."""
    screen.say(f"teacher: {found.lessons.teacher}")
    held_out = f"On {found.quality.num_rows} held-out applicants (95 % interval)"
    screen.table(held_out, ["", *WHO], quality_rows(found))
    screen.table("Speed and size", ["", ""], figure_rows(found))


def quality_rows(found: Findings) -> list[Row]:
    """One row a measure: before, after, teacher."""
    rows: list[Row] = [
        (m.label, *(_estimate(m, m.by[who]) if who in m.by else "–" for who in WHO))
        for m in found.quality.measures
    ]
    openings = found.quality.num_openings
    return [*rows, ("openings", *(str(openings.get(who, "–")) for who in WHO))]


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
    yield "memory of the engine", f"{memory.engine_rss / 2**20:,.0f} MiB"
    yield (
        "base model / adapter",
        f"{memory.model / 2**20:.1f} MiB / {memory.adapter / 2**20:.2f} MiB",
    )
    yield "whole run", f"{found.wall_s:.0f} s"


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
