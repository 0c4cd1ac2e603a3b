"""How results are shown: tables and lines for people, JSON for machines."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer


class OutputFormat(StrEnum):
    """What `-o` takes."""

    TEXT = "text"
    JSON = "json"


Output = Annotated[OutputFormat, typer.Option("-o", "--output", help="How to print the result.")]


def print_json(value: Any) -> None:
    """Print one JSON value on standard output."""
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Print rows as a table, or the line `empty` where there are none."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    if table.row_count == 0:
        typer.echo(empty)
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(table)


def note(message: str) -> None:
    """Tell a person something that is not the result: on standard error."""
    typer.echo(message, err=True)


def age(since: float | None) -> str:
    """Return how long ago a time was, in the largest unit that fits: 42s, 7m, 3h, 12d."""
    if not since:
        return "–"
    seconds = max(0.0, time.time() - since)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def size(num_bytes: float) -> str:
    """Return a size in binary units: 12 B, 3.4 KiB, 5.6 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024 or unit == "GiB":
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    raise AssertionError


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with that many digits after the point, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"
