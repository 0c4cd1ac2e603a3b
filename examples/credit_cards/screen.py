"""What the person in front of the demo sees: stages, the commands typed, bars, one table.

On a terminal the bars are live; elsewhere (a log, CI) a line is printed every few seconds, so that
progress is visible all the time. The screen also keeps when each stage began and ended.
"""

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

LINE_EVERY_S = 5.0
LOG_WIDTH = 110  # of tables where there is no terminal to ask


@dataclass(frozen=True, slots=True)
class Span:
    """A stage that ended, in seconds since the run's start."""

    name: str
    start_s: float
    end_s: float


class Bar:
    """Progress of one thing."""

    def __init__(self, console: Console, what: str, total: int, progress: Progress | None) -> None:
        self._console, self._what, self._progress = console, what, progress
        self._task = progress.add_task(what, total=total, note="") if progress else None
        self._total, self._done, self._said_at = total, 0, time.monotonic()

    def advance(self) -> None:
        """One more is done."""
        self.show(self._done + 1)

    def show(self, done: int, note: str = "", total: int | None = None) -> None:
        """Set how much is done; `total` where it became known only now."""
        self._done, self._total = done, total or self._total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=self._total, note=note)
        elif time.monotonic() - self._said_at >= LINE_EVERY_S:
            self._said_at = time.monotonic()
            self._console.print(f"  {self._what}: {done} of {self._total} {note}".rstrip())


class Screen:
    """Prints, and keeps the timeline."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        if console is None and not self.console.is_terminal:
            self.console.width = LOG_WIDTH
        self.timeline: list[Span] = []
        self._began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run's start."""
        return time.monotonic() - self._began

    @contextmanager
    def stage(self, name: str, purpose: str) -> Iterator[None]:
        """Announce a stage and note its time."""
        start_s = self.elapsed_s
        self.console.print(f"\n[bold]{name}[/bold] · {purpose}")
        yield
        self.timeline.append(Span(name, start_s, self.elapsed_s))
        self.console.print(f"  [dim]{self.elapsed_s - start_s:.1f} s[/dim]")

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Bar]:
        """Show progress towards `total`."""
        if not self.console.is_terminal:
            yield Bar(self.console, what, total, None)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            yield Bar(self.console, what, total, progress)

    def say(self, text: str) -> None:
        """Print a line of a stage. Text is shown as it is."""
        self.console.print(f"  {text}", markup=False)

    def command(self, arguments: Sequence[str]) -> None:
        """Print a command as one would type it."""
        self.console.print(f"  $ quickmatch {shlex.join(arguments)}", style="cyan", markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; all columns but the first are right-aligned."""
        table = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
        )
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
