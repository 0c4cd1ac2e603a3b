"""Prints a report: the surroundings, the ceilings, one line a row, and the bars that fail."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from benchmarks.rows import Row

if TYPE_CHECKING:
    from benchmarks.harness import Report

_MARKS = {True: "[green]holds[/green]", False: "[red]FAILS[/red]", None: ""}


def print_report(report: "Report", path: Path, console: Console | None = None) -> None:
    """Print the report that was written to `path`."""
    console = console or Console(width=150)
    machine = report.provenance["hardware"]
    console.print(
        f"[bold]{report.name}[/bold] on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB (load {machine['load_average_1min']} at the start)"
    )
    if report.ceilings:
        found = ", ".join(f"{name} {value:,.1f}" for name, value in report.ceilings.items())
        console.print(f"ceilings: {found}")
    table = Table()
    for heading in ("measure", "ours", "unit", "peer", "peer's", "ratio", "bar", ""):
        is_number = heading in ("ours", "peer's", "ratio")
        table.add_column(
            heading, justify="right" if is_number else "left", no_wrap=heading == "measure"
        )
    for row in report.rows:
        table.add_row(*_cells(row))
    console.print(table)
    _print_bars(report.rows, console)
    console.print(f"written to {path}")


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    mark = row.note or _MARKS[row.holds]
    return (
        row.measure,
        _number(row.value),
        row.unit,
        row.peer or "",
        _number(row.peer_value),
        ratio,
        row.bar or "",
        mark,
    )


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _print_bars(rows: list[Row], console: Console) -> None:
    judged = [row for row in rows if row.holds is not None]
    failed = [row for row in judged if not row.holds]
    unjudged = [row for row in rows if row.bar is not None and row.holds is None]
    console.print(
        f"bars: {len(judged) - len(failed)} hold, {len(failed)} fail, "
        f"{len(unjudged)} could not be judged"
    )
