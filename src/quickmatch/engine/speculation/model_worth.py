"""Whether a model drafter is worth having, by what was measured with it and without.

What it is expected to gain (model_use.py) leaves out what it costs beside its own passes: heads are
told of every row, its decisions take the host's time, and the target's step finds the caches full
of other things. On a small target that may be more than the gain. So where it is in use, turns of
steps with it and without it alternate, until the difference in tokens a second is clear. Then it is
trusted for a while, or left alone for a while; each time twice as long as the last.

Owns the comparison, for each order of batch size. It does not know what is drafted.
"""

from dataclasses import dataclass, field
from math import log, sqrt

_WITH, _WITHOUT = 12, 6  # steps of a turn; who is on trial is expected to pay
_LEAST_PAIRS, _MOST_PAIRS = 3, 48  # of turns, before there is a verdict
_SURE = 2.0  # standard errors from nothing, for a verdict before there are so many...
_SURER = 6.0  # ...and, divided by the pairs, so many more: their spread is not known well either
_KEPT = 0.5  # of what was seen before, when it is tried again
_FIRST_PERIOD, _LONGEST_PERIOD = 1024, 16384  # steps that a verdict holds


@dataclass(slots=True)
class _Side:
    """What was seen on one side, with the model or without, of pairs of turns."""

    num_tokens: float = 0.0
    num_plain_tokens: float = 0.0
    squares: float = 0.0  # of a turn's tokens less those that the rate so far foretold
    turn: float = 0.0  # of the turn that is on: tokens...
    plain_turn: float = 0.0  # ...and those of plain decoding

    @property
    def rate(self) -> float:
        """Tokens to one of plain decoding: of the sums, as a mean of ratios is not it."""
        return self.num_tokens / max(self.num_plain_tokens, 1e-9)

    @property
    def variance(self) -> float:
        """Of the logarithm of the rate."""
        return self.squares / max(self.num_tokens, 1e-9) ** 2

    def end_turn(self) -> None:
        """Take the turn in."""
        self.num_tokens += self.turn
        self.num_plain_tokens += self.plain_turn
        self.squares += (self.turn - self.rate * self.plain_turn) ** 2
        self.turn = self.plain_turn = 0.0

    def fade(self) -> None:
        """Believe less what was seen long ago."""
        self.num_tokens *= _KEPT
        self.num_plain_tokens *= _KEPT
        self.squares *= _KEPT
        self.turn = self.plain_turn = 0.0


@dataclass(slots=True)
class _Trial:
    """Turns with the model and turns without it, one after the other."""

    with_it: _Side = field(default_factory=_Side)
    without: _Side = field(default_factory=_Side)
    is_with: bool = True
    num_steps: int = 0
    num_pairs: float = 0.0

    def add(self, num_tokens: float, num_plain_tokens: float) -> None:
        """Take in a step; a plain step in its place would have given so many tokens."""
        side = self.with_it if self.is_with else self.without
        side.turn += num_tokens
        side.plain_turn += num_plain_tokens
        self.num_steps += 1
        if self.num_steps < (_WITH if self.is_with else _WITHOUT):
            return
        side.end_turn()
        self.num_pairs += not self.is_with
        self.is_with, self.num_steps = not self.is_with, 0

    def fade(self) -> None:
        """Begin again, with some of what was seen before."""
        self.with_it.fade()
        self.without.fade()
        self.is_with, self.num_steps = True, 0
        self.num_pairs *= _KEPT

    @property
    def verdict(self) -> bool | None:
        """Whether it is worth having; None: not clear yet."""
        if self.num_pairs < _LEAST_PAIRS or self.num_steps or not self.is_with:
            return None
        gain = log(max(self.with_it.rate, 1e-9) / max(self.without.rate, 1e-9))
        error = sqrt(self.with_it.variance + self.without.variance)
        sure = _SURE + _SURER / self.num_pairs
        if abs(gain) < sure * error and self.num_pairs < _MOST_PAIRS:
            return None
        return gain > 0.0


@dataclass(slots=True)
class _State:
    trial: _Trial = field(default_factory=_Trial)
    is_on_trial: bool = True
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
        return state.trial.is_with if state.is_on_trial else state.is_worth

    def is_left_alone(self, num_seqs: int) -> bool:
        """Return whether it was found not to be worth having."""
        state = self._state(num_seqs)
        return not (state.is_on_trial or state.is_worth)

    def is_on_trial(self, num_seqs: int) -> bool:
        """Return whether there is no verdict yet."""
        return self._state(num_seqs).is_on_trial

    def rested(self, num_seqs: int) -> None:
        """Take in a step for which nothing was asked; a verdict ends with time."""
        state = self._state(num_seqs)
        state.num_left -= 1
        if not state.is_on_trial and state.num_left <= 0:
            state.is_on_trial = True
            state.trial.fade()

    def stepped(
        self, num_seqs: int, *, is_on: bool, num_tokens: float, num_plain_tokens: float
    ) -> None:
        """Take in a step that was no rest. is_on: the model is in use, by what is expected of it.

        num_plain_tokens: of plain decoding in its time; of a step without the model, less what
        telling heads took.
        """
        state = self._state(num_seqs)
        if not state.is_on_trial:
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
        state.is_on_trial, state.is_worth, state.num_left = False, verdict, state.period
        state.period = min(2 * state.period, _LONGEST_PERIOD)

    def _state(self, num_seqs: int) -> _State:
        order = num_seqs.bit_length()
        state = self._states.get(order)
        if state is None:
            state = self._states[order] = _State()
        return state
