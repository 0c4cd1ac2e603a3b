"""What drafting takes of a step's time on the host, beside the models: asking, weighing, merging.

Owns three running means: of steps for which nothing was drafted, of those with cheap drafts, and of
those in which a model drafted, too. Taken of the steps between full decisions, which are most.
"""

_KEPT = 31 / 32  # of a mean, from one step to the next


class HostTime:
    """Seconds of one engine's steps, on the machine as it usually is (CostTable.factor)."""

    def __init__(self) -> None:
        self._idle_s = 0.0
        self._drafts_s = 0.0
        self._model_s = 0.0

    def add(self, seconds: float, *, has_drafts: bool, has_plan: bool) -> None:
        """Take in what a step took before it ran, the model drafter's passes left out."""
        if has_plan:
            self._model_s = _moved(self._model_s, seconds)
        elif has_drafts:
            self._drafts_s = _moved(self._drafts_s, seconds)
        else:
            self._idle_s = _moved(self._idle_s, seconds)

    @property
    def of_drafts_s(self) -> float:
        """What cheap drafts add to a step; 0 before any was timed."""
        return max(0.0, self._drafts_s - self._idle_s)

    @property
    def of_model_s(self) -> float:
        """What a model's drafts add to those; 0 before any was timed."""
        return max(0.0, self._model_s - self._drafts_s) if self._model_s else 0.0


def _moved(mean: float, value: float) -> float:
    return mean * _KEPT + value * (1 - _KEPT) if mean else value
