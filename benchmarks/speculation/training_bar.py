"""A progress bar over a training: it listens to the product's training loop."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from quickmatch.tuning.sft import StepReport

_LINE_EVERY_S = 10.0


class TrainingBar:
    """A `quickmatch.tuning.sft.Listener`. Live on a terminal, else a line every ten seconds."""

    def __init__(self, title: str, total_steps: int) -> None:
        self._title, self._total = title, total_steps
        console = Console(stderr=True)
        self._progress: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._progress = Progress(*columns, TimeRemainingColumn(), console=console)
            self._task = self._progress.add_task(title, total=total_steps)
        self._console, self._said_at = console, time.monotonic()

    def __enter__(self) -> "TrainingBar":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def on_step(self, report: StepReport) -> None:
        """Show a step."""
        self.show(report.step, report.loss)

    def show(self, step: int, loss: float) -> None:
        """Show how far it is, and the loss."""
        note = f"{self._title}: loss {loss:.3f}"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=note)
        elif time.monotonic() - self._said_at >= _LINE_EVERY_S or step == self._total:
            self._said_at = time.monotonic()
            self._console.print(f"  {note}, step {step} of {self._total}", highlight=False)

    def on_eval(self, step: int, loss: float) -> None:
        """Nothing is evaluated here."""

    def on_phase(self, phase: str) -> None:
        """One phase only."""

    def before_checkpoint(self) -> None:
        """A checkpoint shows nothing."""

    def should_stop(self) -> bool:
        """Only a signal stops it."""
        return False
