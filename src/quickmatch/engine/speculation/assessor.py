"""What a step's drafts are worth, which of them are verified, and what is learned of them.

Owns the choice between the native assessor and the plain one: the same decisions to the last bit,
one several times as quick, and a step is short. Both hold what is known of every live sequence,
and a step's drafts from `gather` to `choose`. They know no policy: who is asked for drafts, and
whether a model is, the controller decides (controller.py).

A step: gather (again for those that a model then drafted for), outlook if a model is planned for,
choose, and judge for each sequence; refresh between two steps.
"""

from collections.abc import Callable
from functools import cache
from typing import Protocol

from quickmatch.engine.speculation import plain_assessor
from quickmatch.engine.speculation.costs import StepCosts
from quickmatch.engine.speculation.tree import Draft, TreeColumns

Verdict = tuple[list[int], bool, bool]
"""The sources that have drifted; whether the draft began with the target's token; whether a model
proposed that."""


class Promises(Protocol):
    """What model drafters' trees promise by width; see promise.py."""

    @property
    def behind(self) -> float: ...
    def renew(self) -> None: ...
    def look(self, width: int) -> list[float]: ...
    def soften(self) -> None: ...


class Assessor(Protocol):
    """What the native and the plain one have in common. Trees are told by their lists."""

    @property
    def promises(self) -> Promises: ...

    @property
    def num_sequences(self) -> int:
        """Of which something is known."""

    @property
    def drifts(self) -> dict[str, int]:
        """Drifts of the traffic, ever, by scope; of those that had any."""

    def ask(self, sequence_id: int, now: int, longest_pause: int) -> bool:
        """Return whether cheap drafters are to draft for a sequence; see request_state.py."""

    def gather(
        self,
        sequence_ids: list[int],
        trees: list[list[Draft]],
        now: int,
        width: int,
        depth: int,
        renewed: tuple[int, ...] | None,
    ) -> None:
        """Merge each sequence's trees.

        width, depth: of the plan that a model drafted by. renewed: ids of those whose trees are
        merged anew, the others keep what was merged before in this step; None: all.
        """

    def outlook(self, costs: StepCosts) -> tuple[float, list[float], list[int], list[float]]:
        """Return what the step gives at best with the drafts that were gathered.

        Tokens a second; by sequence the expected accepted tokens, their nodes, and what a model
        promises there beside the usual.
        """

    def gain(self, num_nodes: int) -> float:
        """Return the accepted tokens expected of so many nodes, the likeliest of the step."""

    def choose(
        self, costs: StepCosts, margin: float, max_rows: int, max_nodes: int, least_gain: float
    ) -> tuple[int, list[TreeColumns | None]]:
        """Return how many nodes give the most tokens a second, and each sequence's tree of them.

        0 and no trees unless they are better than plain decoding by the factor `margin`.
        max_rows: nodes that the step has room for. max_nodes: of a tree. least_gain: accepted
        tokens, beyond the price of verifying them, for which a cheap draft was worth asking.
        """

    def choose_all(self, max_rows: int, max_nodes: int) -> list[TreeColumns | None]:
        """Return the same of as many nodes as there is room for, whatever they cost."""

    def judge(
        self,
        sequence_id: int,
        token_ids: list[int],
        scope: str,
        is_learning: bool,
        was_plain: bool,
    ) -> Verdict | None:
        """Take in the target's tokens for a sequence; None if nothing was drafted in this step.

        scope: what drifts are told apart by. is_learning: whether calibration and records are
        told. was_plain: nothing was verified; a draft that was right is soon asked for again.
        """

    def refresh(self) -> None:
        """Between two steps: take what was learned into the tables, where there is enough."""

    def renew(self, source: int) -> None:
        """Forget what is known of a source: it is another one now."""

    def forget(self, sequence_id: int) -> None:
        """Learn from the end of a sequence, and drop what is known of it."""


@cache
def best_assessor_type() -> Callable[..., Assessor]:
    """Return the native assessor, or the plain one where that is not built."""
    try:
        from quickmatch._native import Assessor as NativeAssessor
    except ImportError:  # the suffix index tells of it
        return plain_assessor.Assessor
    return NativeAssessor
