"""A progress bar over a training: it listens to the product's training loop."""

from collections.abc import Iterator
from contextlib import contextmanager

from examples.credit_cards.screen import Bar, Screen
from quickmatch.tuning.sft import StepReport


class TrainingBar:
    """A `quickmatch.tuning.sft.Listener` that moves a bar."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def on_step(self, report: StepReport) -> None:
        """Show a step."""
        self._bar.show(report.step, f"loss {report.loss:.3f}")

    def on_eval(self, step: int, loss: float) -> None:
        """Nothing is evaluated here."""

    def on_phase(self, phase: str) -> None:
        """One phase only."""

    def before_checkpoint(self) -> None:
        """A checkpoint shows nothing."""

    def should_stop(self) -> bool:
        """Only a signal stops it."""
        return False


@contextmanager
def training_bar(screen: Screen, what: str, total_steps: int) -> Iterator[TrainingBar]:
    """Show a bar for the length of the block."""
    with screen.bar(what, total_steps) as bar:
        yield TrainingBar(bar)
