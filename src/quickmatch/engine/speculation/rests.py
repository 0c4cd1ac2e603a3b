"""When speculation rests: steps that are plain with nothing done for them, not even a question.

A draft that is not worth it costs little on a large model and too much on a small one, whose step
is as short as the deliberation. So what drafting really brings is measured over a window of steps,
all that it takes on the host included; where it brings nothing, it rests.

A rest ends with a look: one full decision. If drafting is expected to pay twice in a row, it goes
on; if not, but what was drafted turns out right, the next step is another look, and after a few
such it is awake for a while to learn.

What all this may lose is kept as an account, in plain steps: rests earn a small share of their
time, what drafting wins is added up to a bound, and what looks and windows lose is taken off. A
look is taken when the account has what looks have cost of late; so text that cannot be drafted is
decoded slower by that share at most, however often it seems promising.

What plain decoding takes is measured in rests; while there is none, a few plain steps are taken now
and then as a sample. A plain step beside drafting is not the same: caches are full of other things.

Owns the window and the account. It does not know what is drafted or how.
"""

_SHARE = 0.008  # of a rest's time, that looking for a gain may lose
_MOST_SAVED = 24.0  # plain steps in the account...
_LEAST_OWED, _MOST_OWED = 2.0, 16.0  # ...and missing from it: doubled by each wake in vain
_FIRST_LOOK = 0.25  # plain steps that a look loses, before any was timed
_UNASKED = 4.0  # times that much is needed for a look without a new request, which may be another
_SHORTEST = 8  # steps of a rest
_WINDOW = 24  # steps over which drafting has to be worth it
_MARGIN = 1.04  # times the plain rate
_AFTER_NEWS = 96  # steps awake, whatever they bring, at the start and with a new head
_TO_LEARN = 48  # and when looks were promising
_SAMPLE_EVERY, _SAMPLE = 240, 4  # steps awake, and plain ones after them to compare with
_LOOKS = 3  # in a row that find drafts right...
_WORTH_LOOKS = 2  # ...or worth their cost: one may be luck


class Rests:
    """One engine's."""

    def __init__(self) -> None:
        self.is_resting = False
        self.is_looking = False  # awake only for a full decision
        self.is_sampling = False  # the rest is a sample
        self._num_rested = 0  # steps of this rest
        self._num_awake = 0  # since the last rest
        self._has_new_request = False  # since the last look
        self._saved = 0.0  # the account, in plain steps
        self._bound = _LEAST_OWED  # of what may be missing
        self._look_cost = _FIRST_LOOK
        self._awake_left = _AFTER_NEWS  # steps before any judgement
        self._is_free = True  # of the account, until then
        self._is_worth = False  # what a look has found
        self._num_judged = self._num_right = 0  # first tokens drafted in a look
        self._num_promising = 0  # looks in a row
        self._num_worth = 0
        self._begin_window()

    def begin_step(self) -> bool:
        """Return whether this step is a plain one, of a rest."""
        if not self.is_resting:
            self._num_awake += 1
            if self._num_awake <= _SAMPLE_EVERY or self.is_looking or self._awake_left:
                return False
            self.is_resting = self.is_sampling = True
            self._num_rested = 0
        self._num_rested += 1
        if self.is_sampling:
            self.is_resting = self.is_sampling = self._num_rested <= _SAMPLE
        elif self._is_look_due():
            self._look()
        else:
            self._saved = min(self._saved + _SHARE, _MOST_SAVED)
        self._num_awake = 0
        return self.is_resting

    def _is_look_due(self) -> bool:
        factor = 1.0 if self._has_new_request else _UNASKED
        return self._num_rested > _SHORTEST and self._saved >= factor * self._look_cost

    @property
    def is_telling(self) -> bool:
        """Whether this plain step is worth timing: the first find the caches otherwise."""
        return self.is_resting and self._num_rested % (_SAMPLE if self.is_sampling else 8) == 0

    def _look(self) -> None:
        """End a rest for a look, beginning with this step."""
        if self.is_resting:
            self.is_resting, self.is_sampling, self.is_looking = False, False, True
            self._has_new_request = False

    def arrived(self, *, is_watched: bool) -> None:
        """A new request has come. is_watched: a head can show at once what it is worth there."""
        self._has_new_request = True
        if is_watched and self.affords_look:
            self._look()

    @property
    def affords_look(self) -> bool:
        """Whether a new request may be looked at, at once."""
        return self._saved >= self._look_cost

    def wake(self) -> None:
        """There is another model to draft with: stay awake for a while, whatever it brings."""
        self._wake(_AFTER_NEWS)
        self._is_free = True

    def foretold(self) -> None:
        """A caller has told what text to expect: a rest is over, for a window at least."""
        if self.is_resting:
            self._wake(_WINDOW)

    def decided(self, *, is_worth: bool) -> None:
        """Take in a full decision: whether drafting is expected to beat the plain step."""
        self._is_worth = is_worth

    def judged(self, *, is_right: bool) -> None:
        """Take in whether a sequence's draft began with the right token."""
        self._num_judged += 1
        self._num_right += is_right

    def stepped(
        self, *, num_seqs: int, num_tokens: int, num_plain_tokens: float, is_trial: bool = False
    ) -> None:
        """Take in a step that was no rest: its tokens, and those of plain decoding in its time.

        is_trial: a model was asked, or not, to compare; what that loses is no reason for a rest.
        """
        gain = (num_tokens - num_plain_tokens) / num_seqs
        least = 0.0 if self._is_free else -self._bound
        self._saved = max(min(self._saved + gain, _MOST_SAVED), least)
        if self.is_looking:
            self._look_cost += (min(max(-gain, 0.0), _MOST_SAVED / _UNASKED) - self._look_cost) / 4
            self._looked()
        self._num_judged = self._num_right = 0
        if self.is_resting or self.is_looking:
            return
        self._awake_left = max(0, self._awake_left - 1)
        self._is_free = self._is_free and self._awake_left > 0
        if is_trial:
            return
        self._num_steps += 1
        self._tokens += num_tokens
        self._plain_tokens += num_plain_tokens
        if self._num_steps < _WINDOW:
            return
        if self._tokens >= _MARGIN * self._plain_tokens:
            self._bound = _LEAST_OWED
        elif not self._awake_left and self._saved <= 0.0:
            self._bound = min(2 * self._bound, _MOST_OWED)
            self._rest()
        self._begin_window()

    def _looked(self) -> None:
        if self._is_worth:
            self._num_worth += 1
            if self._num_worth >= _WORTH_LOOKS:
                self._wake(0)
        elif self._num_right and 2 * self._num_right >= self._num_judged:
            self._num_promising += 1
            if self._num_promising >= _LOOKS:
                self._wake(_TO_LEARN)
        else:
            self._rest()

    def _wake(self, num_steps: int) -> None:
        self.is_resting = self.is_sampling = self.is_looking = False
        self._awake_left = num_steps
        self._num_promising = self._num_worth = 0
        self._begin_window()

    def _begin_window(self) -> None:
        self._num_steps, self._tokens, self._plain_tokens = 0, 0.0, 0.0

    def _rest(self) -> None:
        self.is_resting, self.is_looking, self._num_rested = True, False, 0
        self._num_promising = self._num_worth = 0
