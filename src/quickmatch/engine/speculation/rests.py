"""When speculation rests: steps that are plain with nothing done for them, not even a question.

A draft that is not worth it costs little on a large model and too much on a small one, whose step
is as short as the deliberation. So what drafting really brings is measured over a window of steps,
all that it takes on the host included; where it brings nothing, it rests. It wakes to look again
after pauses that double, and soon after a new request has come, which may be of another kind.

A look is one full decision. It ends the rest if drafting is expected to pay; if not, but what was
drafted turns out right, the next step is another look, and after a few such it is awake to learn.

What plain decoding takes is measured in rests; while there is none, a few plain steps are taken now
and then as a sample. A plain step beside drafting is not the same: caches are full of other things.

Owns the window and the pauses. It does not know what is drafted or how.
"""

_WINDOW = 24  # steps over which drafting has to be worth it
_MARGIN = 1.04  # times the plain rate
_SHORTEST, _LONGEST = 24, 192  # plain steps of a rest
_AFTER_ARRIVAL = 8  # plain steps at most once a new request has come
_AFTER_NEWS = 96  # steps awake once there is something new to learn
_SAMPLE_EVERY, _SAMPLE = 240, 4  # steps awake, and plain ones after them to compare with
_LOOKS = 3  # in a row that find drafts right...
_WORTH_LOOKS = 2  # ...or worth their cost: one may be luck


class Rests:
    """One engine's."""

    def __init__(self) -> None:
        self.is_resting = False
        self.is_looking = False  # awake only for a full decision
        self.is_sampling = False  # the rest is a sample
        self._left = 0  # plain steps of this rest
        self._num_awake = 0  # since the last rest
        self._num_since_look = 0  # steps of rests
        self._pause = _SHORTEST
        self._awake_left = _AFTER_NEWS  # steps before any judgement
        self._is_worth = False  # what a look has found
        self._num_judged = self._num_right = 0  # first tokens drafted in a look
        self._num_promising = 0  # looks in a row
        self._num_worth = 0
        self._num_steps = 0  # in the window
        self._tokens = 0.0
        self._plain_tokens = 0.0  # that plain decoding would have given in the same time

    def begin_step(self) -> bool:
        """Return whether this step is a plain one, of a rest."""
        if not self.is_resting:
            self._num_awake += 1
            if self._num_awake <= _SAMPLE_EVERY or self.is_looking or self._awake_left:
                return False
            self.is_resting = self.is_sampling = True
            self._left = _SAMPLE
        self._left -= 1
        self._num_since_look += 1
        if self._left >= 0:
            self._num_awake = 0
            return True
        if self.is_sampling:
            self.is_resting = self.is_sampling = False
        else:
            self.look()
        return False

    @property
    def is_telling(self) -> bool:
        """Whether this plain step is worth timing: the first find the caches otherwise."""
        return self.is_resting and (self._left == 0 if self.is_sampling else self._left % 8 == 0)

    def look(self) -> None:
        """End a rest for a look, beginning with this step."""
        if self.is_resting:
            self.is_resting, self.is_sampling, self.is_looking = False, False, True
            self._num_since_look = 0

    def arrived(self) -> None:
        """A new request has come. Where many do, not each is worth a look."""
        if self._num_since_look >= _LONGEST // 4:
            self._left = min(self._left, _AFTER_ARRIVAL)

    def wake(self) -> None:
        """There is news: stay awake for a while."""
        self.is_resting = self.is_sampling = self.is_looking = False
        self._awake_left = _AFTER_NEWS
        self._pause = _SHORTEST
        self._num_promising = self._num_worth = 0
        self._begin_window()

    def decided(self, *, is_worth: bool) -> None:
        """Take in a full decision: whether drafting is expected to beat the plain step."""
        self._is_worth = is_worth

    def judged(self, *, is_right: bool) -> None:
        """Take in whether a sequence's draft began with the right token."""
        self._num_judged += 1
        self._num_right += is_right

    def stepped(self, *, num_tokens: int, num_plain_tokens: float) -> None:
        """Take in a step that was no rest: its tokens, and those of plain decoding in its time."""
        if self.is_looking:
            self._looked()
        self._num_judged = self._num_right = 0
        if self.is_resting or self.is_looking:
            return
        self._awake_left = max(0, self._awake_left - 1)
        self._num_steps += 1
        self._tokens += num_tokens
        self._plain_tokens += num_plain_tokens
        if self._num_steps < _WINDOW:
            return
        if self._tokens < _MARGIN * self._plain_tokens and not self._awake_left:
            self._rest()
        else:
            self._pause = _SHORTEST
        self._begin_window()

    def _looked(self) -> None:
        if self._is_worth:
            self._num_worth += 1
            if self._num_worth >= _WORTH_LOOKS:
                self.is_looking, self._num_promising, self._num_worth = False, 0, 0
                self._begin_window()
        elif self._num_right and 2 * self._num_right >= self._num_judged:
            self._num_promising += 1
            if self._num_promising >= _LOOKS:
                self.wake()
        else:
            self._rest()

    def _begin_window(self) -> None:
        self._num_steps, self._tokens, self._plain_tokens = 0, 0.0, 0.0

    def _rest(self) -> None:
        self.is_resting, self.is_looking, self._left = True, False, self._pause
        self._pause = min(2 * self._pause, _LONGEST)
        self._num_promising = self._num_worth = 0
        self._begin_window()
