"""When a step is decided in full and learnt from; between, it goes by what was decided last.

To weigh every way to draft, and to judge what was drafted so as to learn from it, takes some
hundred microseconds, which a small model's step does not have. So both have their turns, as often
as a small share of the time pays for; on a model whose step takes longer that is every step. While
there is much to learn, at first and after news, the gaps are short whatever it takes.

Between, drafts are made as the last decision had it, and what is verified of them is still chosen
by the table of costs. Where decisions found nothing worth drafting several times over, nothing is
asked for between them.
"""

from math import ceil

_SHARE = 0.04  # of the time that decisions and lessons may take
_DECISION_S = 150e-6  # of both, for one sequence
_DECISION_SEQ_S = 50e-6  # for each further one
_MOST_STEPS = 16  # between two...
_DECISIONS_A_STEP = 16  # ...and at first, or after news, none: so many widen the gap by one
_PATIENCE = 6  # decisions in a row that found no draft worth it


class Turns:
    """One engine's. Tells of steps by their number."""

    def __init__(self) -> None:
        self._step_s = 0.0  # of late
        self._num_seqs = 0
        self._next = 0
        self._num_vain = 0
        self._num_decisions = 0  # since the last news

    def is_due(self, now: int) -> bool:
        """Return whether this step is to be decided in full, and learnt from."""
        return now >= self._next

    @property
    def is_drafting(self) -> bool:
        """Whether to draft in the steps between."""
        return self._num_vain < _PATIENCE

    def holds(self, num_seqs: int) -> bool:
        """Return whether the last decision was about as many sequences."""
        return num_seqs == self._num_seqs

    def decided(self, now: int, *, num_seqs: int, is_worth: bool) -> None:
        """Take in a full decision; is_worth: drafting was better than the plain step."""
        self._num_seqs = num_seqs
        self._num_vain = 0 if is_worth else self._num_vain + 1
        self._num_decisions += 1
        decision_s = _DECISION_S + _DECISION_SEQ_S * (num_seqs - 1)
        gap = ceil(decision_s / (_SHARE * max(self._step_s, 1e-6)))
        most = min(1 + self._num_decisions // _DECISIONS_A_STEP, _MOST_STEPS)
        self._next = now + max(1, min(gap, most))

    def stepped(self, seconds: float) -> None:
        """Take in what a step took."""
        self._step_s += (seconds - self._step_s) / 8 if self._step_s else seconds

    def renew(self) -> None:
        """Decide anew at the next step: there is news."""
        self._next = 0
        self._num_vain = 0
        self._num_decisions = 0
