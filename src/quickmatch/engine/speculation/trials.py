"""What may be lost in order to know: trials of what does not seem to pay, on a tight allowance.

Each purpose (a model's draft, a plain step while drafting, asking cheap drafters) earns a small
share of the time that steps take and spends what its trials lose. So together they cost at most
the sum of the shares, whatever the text. The first trials of a model that were right are paid back,
so that the next comes at once: what is new is soon known. No randomness.

Owns the allowances and what trials cost; who is tried is the controller's choice.
"""

from quickmatch.engine.speculation.costs import CostTable

_SHARE = 0.003  # of the time, for each purpose
_MODEL_SHARE = 0.004
_MAX_SAVED = 3.0  # losses of a usual trial that can be saved up
_REWARD = 1.25  # of its loss, what a trial that was right gets back...
_NUM_REWARDS = 32  # ...of a new model's; later ones teach little
_PLAIN_STALE = 64  # steps without a plain one before one is due
_RATE_KEPT = 0.97  # of the tokens and seconds behind the usual rate, from step to step
_FIRST_ASK_S = 25e-6  # of a cheap draft, before any is timed
_LONGEST_PAUSE = 32  # steps between two drafts of a sequence that do not help


class Allowance:
    """Seconds that trials of one purpose may lose."""

    def __init__(self, share: float = _SHARE) -> None:
        self._share = share
        self._saved_s = 0.0

    def earn(self, seconds: float) -> None:
        """Add the share of a step's time."""
        self._saved_s += self._share * seconds

    def affords(self, loss_s: float) -> bool:
        """Return whether a trial may be made that loses this much if it fails."""
        loss_s = max(loss_s, 0.0)
        self._saved_s = min(self._saved_s, _MAX_SAVED * loss_s)
        return self._saved_s >= loss_s

    def spend(self, loss_s: float) -> None:
        """Take off what a trial loses if it fails; below 0: what it has won back."""
        self._saved_s -= loss_s


class Trials:
    """The allowances of all purposes, and the trial that is on in this step."""

    def __init__(self, costs: CostTable) -> None:
        self._costs = costs
        self._model = Allowance(_MODEL_SHARE)
        self._plain = Allowance()
        self._paid: tuple[Allowance, float] | None = None  # in this step, and how much
        self._tokens, self._seconds = 1e-9, 1e-9  # of late
        self._num_since_plain = 0  # steps
        self._num_rewards = _NUM_REWARDS
        self._ask_s = _FIRST_ASK_S

    # ---- is there to be one

    def is_plain_due(self, num_seqs: int) -> bool:
        """Return whether this step is to be plain, so that its cost is known anew."""
        if not self._costs.knows_plain:
            return True
        if self._num_since_plain < _PLAIN_STALE:
            return False
        loss_s = self._costs.plain_s(num_seqs) - num_seqs * self._seconds / self._tokens
        return self._begin(self._plain, loss_s)

    def tries_model(self, drafting_s: float) -> bool:
        """Return whether to have a model draft what does not seem to pay, only to be judged."""
        return self._begin(self._model, drafting_s)

    def longest_pause(self, num_seqs: int) -> int:
        """Return after how many steps at most a sequence may be asked for a draft of no use."""
        pause = self._ask_s * num_seqs / (_SHARE * self._costs.plain_s(num_seqs))
        return min(int(pause) + 1, _LONGEST_PAUSE)

    @property
    def least_gain(self) -> float:
        """Accepted tokens that a cheap draft must promise to be worth asking for."""
        return self._ask_s * self._tokens / self._seconds

    def _begin(self, allowance: Allowance, loss_s: float) -> bool:
        if not allowance.affords(loss_s):
            return False
        allowance.spend(loss_s)
        self._paid = (allowance, loss_s)
        return True

    # ---- what came of it

    def won(self) -> None:
        """What was on trial in this step was right."""
        if self._paid is not None and self._num_rewards > 0:
            self._num_rewards -= 1
            allowance, loss_s = self._paid
            allowance.spend(-_REWARD * loss_s)
            self._paid = None

    def renew(self) -> None:
        """Another model is to be tried."""
        self._num_rewards = _NUM_REWARDS

    def asked(self, num_asked: int, seconds: float) -> None:
        """Take in what cheap drafts took."""
        ask_s = min(seconds / num_asked, 4 * self._ask_s)
        self._ask_s += (ask_s - self._ask_s) / 16

    def stepped(self, *, num_tokens: int, seconds: float, is_plain: bool) -> None:
        """Earn by a step."""
        for allowance in (self._model, self._plain):
            allowance.earn(seconds)
        self._paid = None
        self._tokens = self._tokens * _RATE_KEPT + num_tokens
        self._seconds = self._seconds * _RATE_KEPT + seconds
        self._num_since_plain = 0 if is_plain else self._num_since_plain + 1
