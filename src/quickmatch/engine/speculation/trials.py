"""What may be lost in order to know: trials of what does not seem to pay, on a tight allowance.

Each purpose (a cheap draft, a model's draft, a plain step while drafting) earns a small share of
the time that steps take and spends what its trials lose, so together they cost at most the sum of
the shares, whatever the text; a trial that pays is paid back and the next comes at once. No
randomness.
"""

SHARE = 0.003  # of the time, for each purpose
_MAX_SAVED = 3.0  # losses of a usual trial that can be saved up


class Allowance:
    """Seconds that trials of one purpose may lose."""

    def __init__(self, share: float = SHARE) -> None:
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
        """Take off what a trial lost; a gain (below 0) pays for the next."""
        self._saved_s -= loss_s


class Trials:
    """The allowances of all purposes, and the trial that is on in this step."""

    def __init__(self) -> None:
        self.draft = Allowance()
        self.model = Allowance()
        self.plain = Allowance()
        self._current: Allowance | None = None

    def begin(self, allowance: Allowance) -> None:
        """Charge what this step loses to an allowance."""
        self._current = allowance

    def end(self, *, step_s: float, loss_s: float) -> None:
        """Settle a step. loss_s: its seconds less those its tokens take without drafts."""
        for allowance in (self.draft, self.model, self.plain):
            allowance.earn(step_s)
        if self._current is not None:
            self._current.spend(loss_s)
            self._current = None
