"""What drafting takes of a step's time beside the drafts themselves and what verifies them.

Owns running means: of the host's time for asking, weighing and merging, in steps for which nothing
was drafted, in those with cheap drafts, and in those in which a model drafted, too (all of the
steps between full decisions, which are most); and of telling heads of a sequence's rows.
"""

_KEPT = 31 / 32  # of a mean, from one step to the next


class HostTime:
    """Seconds of one engine's steps, on the machine as it usually is (CostTable.factor)."""

    def __init__(self) -> None:
        self._idle_s = 0.0
        self._drafts_s = 0.0
        self._model_s = 0.0
        self._told_s = 0.0  # a sequence

    def add(self, seconds: float, *, has_drafts: bool, has_plan: bool) -> None:
        """Take in what a step took before it ran, the model drafter's passes left out."""
        if has_plan:
            self._model_s = _moved(self._model_s, seconds)
        elif has_drafts:
            self._drafts_s = _moved(self._drafts_s, seconds)
        else:
            self._idle_s = _moved(self._idle_s, seconds)

    def told(self, seconds: float, num_seqs: int) -> None:
        """Take in what telling heads of so many sequences took."""
        self._told_s = _moved(self._told_s, seconds / num_seqs)

    def of_telling_s(self, num_seqs: int) -> float:
        """Return what heads take to be told of a step; 0 before any was timed."""
        return self._told_s * num_seqs

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
