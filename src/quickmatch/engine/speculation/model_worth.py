"""Whether a model drafter is worth having, by what was measured with it and without.

What it is expected to gain (model_use.py) leaves out what it costs beside its own passes: heads are
told of every row, its decisions take the host's time, and the target's step finds the caches full
of other things. On a small target that may be more than the gain. So where it is in use, turns of
steps with it and without it alternate, until the difference in tokens a second is clear. Then it is
trusted for a while, or left alone for a while; each time twice as long as the last.

Owns the comparison, for each order of batch size. It does not know what is drafted.
"""

from dataclasses import dataclass
from math import log, sqrt

_WITH, _WITHOUT = 24, 4  # steps of a turn
_LEAST_PAIRS, _MOST_PAIRS = 4, 20  # of turns, before there is a verdict
_SURE = 2.0  # standard errors below nothing, before it is left alone sooner
_FIRST_PERIOD, _LONGEST_PERIOD = 1024, 16384  # steps that a verdict holds


@dataclass(slots=True)
class _Trial:
    """Pairs of turns, one with the model and one without."""

    is_with: bool = True
    num_steps: int = 0
    num_tokens: float = 0.0
    num_plain_tokens: float = 0.0
    rate_with: float = 1.0
    num_pairs: int = 0
    mean: float = 0.0  # of the logarithm of (with ÷ without)
    squares: float = 0.0  # of its distances from the mean

    def add(self, num_tokens: float, num_plain_tokens: float) -> None:
        """Take in a step; a plain step in its place would have given so many tokens."""
        self.num_steps += 1
        self.num_tokens += num_tokens
        self.num_plain_tokens += num_plain_tokens
        if self.num_steps < (_WITH if self.is_with else _WITHOUT):
            return
        rate = self.num_tokens / max(self.num_plain_tokens, 1e-9)
        if self.is_with:
            self.rate_with = rate
        else:
            difference = log(max(self.rate_with, 1e-9) / max(rate, 1e-9))
            self.num_pairs += 1
            before = difference - self.mean
            self.mean += before / self.num_pairs
            self.squares += before * (difference - self.mean)
        self.is_with = not self.is_with
        self.num_steps, self.num_tokens, self.num_plain_tokens = 0, 0.0, 0.0

    @property
    def verdict(self) -> bool | None:
        """Whether it is worth having; None: not clear yet. It is given up only on evidence."""
        if self.num_pairs < _LEAST_PAIRS:
            return None
        error = sqrt(self.squares / (self.num_pairs - 1) / self.num_pairs)
        if self.mean > 0.0:
            return True
        return False if self.mean < -_SURE * error or self.num_pairs >= _MOST_PAIRS else None


@dataclass(slots=True)
class _State:
    trial: _Trial | None  # None: there is a verdict
    is_worth: bool = True
    num_left: int = 0  # steps that the verdict holds
    period: int = _FIRST_PERIOD  # of the next one


class ModelWorth:
    """One engine's."""

    def __init__(self) -> None:
        self._states: dict[int, _State] = {}  # by the order of the batch size

    def renew(self) -> None:
        """Forget all verdicts: it is another drafter now."""
        self._states.clear()

    def may_draft(self, num_seqs: int) -> bool:
        """Return whether the model may be asked in this step."""
        state = self._state(num_seqs)
        return state.is_worth if state.trial is None else state.trial.is_with

    def is_left_alone(self, num_seqs: int) -> bool:
        """Return whether it was found not to be worth having."""
        state = self._state(num_seqs)
        return state.trial is None and not state.is_worth

    def rested(self, num_seqs: int) -> None:
        """Take in a step for which nothing was asked; a verdict ends with time."""
        state = self._state(num_seqs)
        state.num_left -= 1
        if state.trial is None and state.num_left <= 0:
            state.trial = _Trial()

    def stepped(
        self, num_seqs: int, *, is_on: bool, num_tokens: float, num_plain_tokens: float
    ) -> None:
        """Take in a step that was no rest. is_on: the model is in use, by what is expected of it.

        num_plain_tokens: of plain decoding in its time; of a step without the model, less what
        telling heads took.
        """
        state = self._state(num_seqs)
        if state.trial is None:
            self.rested(num_seqs)
            return
        if not is_on:
            return
        state.trial.add(num_tokens, num_plain_tokens)
        verdict = state.trial.verdict
        if verdict is None:
            return
        if verdict != state.is_worth:
            state.period = _FIRST_PERIOD
        state.trial, state.is_worth, state.num_left = None, verdict, state.period
        state.period = min(2 * state.period, _LONGEST_PERIOD)

    def _state(self, num_seqs: int) -> _State:
        order = num_seqs.bit_length()
        state = self._states.get(order)
        if state is None:
            state = self._states[order] = _State(_Trial())
        return state
