"""What the controller knows of one running sequence.

Owns how its drafts fare beside the usual: accepted over foretold, by source, with a short memory
that also fades while nothing is verified; so a request whose drafts fail stops within a few steps,
another's go on, and the first gets another chance later. And when its cheap drafters are asked
next: rarely when they have not helped for a while.

The twin of src/native/speculation/request_state.hpp.
"""

from quickmatch.engine.speculation.merging import Merged
from quickmatch.engine.speculation.tree import Source

_PRIOR = 3.0  # accepted and foretold tokens before any: what the usual is worth
_KEPT = 0.9  # of what was seen, from one verification to the next
_FADING = 0.985  # of what was seen, from one step to the next without
_REVIEW_STEPS = 16
_MAX_RATIO = 2.5
_PATIENCE = 4  # drafts of no use before they are asked for less often
_BLOCK = 64  # places: enough to tell a request's acceptance
_LEAST_BLOCK = 8  # at its end
_NUM_SOURCES = len(Source)


class RequestState:
    """One sequence's record."""

    __slots__ = (
        "_accepted",
        "_asked",
        "_blocks",
        "_foretold",
        "_gain",
        "_misses",
        "_next_ask",
        "_reviewed",
        "_usual",
        "drafted",
        "ratios",
        "scope",
    )

    def __init__(self, now: int) -> None:
        self.ratios = [1.0] * _NUM_SOURCES  # acceptance beside the usual, by source
        self.drafted: Merged | None = None  # in this step, until it is judged
        self._gain = 0.0  # accepted tokens that a model's trees promised
        self._usual = 0.0  # and what they promise as a rule
        self.scope = ""  # what drifts are told apart by
        self._blocks = [(0, 0)] * _NUM_SOURCES  # judged and right since the last block
        self._accepted = [0.0] * _NUM_SOURCES
        self._foretold = [0.0] * _NUM_SOURCES
        self._reviewed = now
        self._asked = False
        self._misses = 0
        self._next_ask = 0

    # ---- acceptance

    def add(self, source: int, foretold: float, accepted: float) -> None:
        """Take in a verification: tokens of a source expected and accepted among those tested."""
        self._accepted[source] = self._accepted[source] * _KEPT + accepted
        self._foretold[source] = self._foretold[source] * _KEPT + foretold
        self._set_ratio(source)

    def review(self, now: int) -> None:
        """Let what is old fade; cheap to call every step."""
        age = now - self._reviewed
        if age >= _REVIEW_STEPS:
            self._reviewed = now
            self.fade(_FADING**age)

    def fade(self, kept: float) -> None:
        """Keep that share of what was seen."""
        for source in Source:
            self._accepted[source] *= kept
            self._foretold[source] *= kept
            self._set_ratio(source)
        self._gain *= kept
        self._usual *= kept

    def _set_ratio(self, source: int) -> None:
        ratio = (_PRIOR + self._accepted[source]) / (_PRIOR + self._foretold[source])
        self.ratios[source] = min(ratio, _MAX_RATIO)

    def count(self, source: int, num_tested: int, num_right: int) -> float | None:
        """Count places where a source had a draft; return the acceptance of each full block."""
        tested, right = self._blocks[source]
        self._blocks[source] = tested + num_tested, right + num_right
        return self.take_block(source, _BLOCK) if tested + num_tested >= _BLOCK else None

    def take_block(self, source: int, least: int = _LEAST_BLOCK) -> float | None:
        """Return a source's acceptance since the last block, if as many places were judged."""
        num_tested, num_right = self._blocks[source]
        self._blocks[source] = 0, 0
        return num_right / num_tested if num_tested >= least else None

    # ---- a model drafter's promise

    def promised(self, gain: float, usual: float) -> None:
        """Take in how many accepted tokens a model's tree promises, and what is usual."""
        self._gain = self._gain * _KEPT + gain
        self._usual = self._usual * _KEPT + usual

    @property
    def model_ratio(self) -> float:
        """What a model drafter promises here, beside the usual."""
        return min((_PRIOR + self._gain) / (_PRIOR + self._usual), _MAX_RATIO)

    # ---- asking cheap drafters

    def ask(self, now: int, longest_pause: int) -> bool:
        """Return whether to draft now. The pause doubles while drafts are of no use."""
        if self._asked:  # the last draft was not worth a verification
            self._misses += 1
            self._asked = False
            if self._misses > _PATIENCE:
                pause = min(1 << min(self._misses - _PATIENCE, 5), longest_pause)
                self._next_ask = now + pause - 1
        if now < self._next_ask:
            return False
        self._asked = True
        return True

    def was_right(self) -> None:
        """Note that a draft began well, though it was not worth its verification: ask again."""
        self._next_ask = 0

    def helped(self) -> None:
        """Note that a draft was worth its verification."""
        self._asked = False
        self._misses = 0
        self._next_ask = 0
