"""The assessor in plain Python: it says what the native one does, and does the same without it.

Owns every live sequence's record and the step's drafts. What the methods do: assessor.py. A test
holds the two equal.

The twin of src/native/speculation/assessor.hpp.
"""

from collections.abc import Sequence

from quickmatch.engine.speculation.costs import StepCosts
from quickmatch.engine.speculation.gathering import Gatherer
from quickmatch.engine.speculation.merging import Merged
from quickmatch.engine.speculation.promise import Promises
from quickmatch.engine.speculation.request_state import RequestState
from quickmatch.engine.speculation.step_drafts import StepDrafts
from quickmatch.engine.speculation.tree import Draft, DraftTree, TreeColumns
from quickmatch.engine.speculation.verdicts import Verdicts


class Assessor:
    """max_depth: of a model's trees. floor: of path probability; what is below is not looked at."""

    def __init__(self, *, max_depth: int, floor: float) -> None:
        self.promises = Promises(max_depth)
        self._verdicts = Verdicts()
        self._gatherer = Gatherer(self._verdicts.calibration, self.promises, floor)
        self._states: dict[int, RequestState] = {}
        self._drafts = StepDrafts([], [], floor)

    @property
    def num_sequences(self) -> int:
        return len(self._states)

    @property
    def drifts(self) -> dict[str, int]:
        return self._verdicts.drift.drifts

    def ask(self, sequence_id: int, now: int, longest_pause: int) -> bool:
        return self._state(sequence_id, now).ask(now, longest_pause)

    def gather(
        self,
        sequence_ids: Sequence[int],
        trees: Sequence[Sequence[Draft]],
        now: int,
        width: int,
        depth: int,
        renewed: Sequence[int] | None,
    ) -> None:
        if renewed is None:
            states: Sequence[RequestState] = [self._state(i, now) for i in sequence_ids]
            kept: list[Merged | None] = [None] * len(states)
        else:
            states, before = self._drafts.states, self._drafts.merged
            kept = [
                None if i in renewed else merged
                for i, merged in zip(sequence_ids, before, strict=True)
            ]
        read = [[DraftTree.of(draft) for draft in drafts] for drafts in trees]
        self._drafts = self._gatherer.gather(states, read, kept, now=now, width=width, depth=depth)

    def outlook(self, costs: StepCosts) -> tuple[float, list[float], list[int], list[float]]:
        ratios = [state.model_ratio for state in self._drafts.states]
        return *self._drafts.outlook(costs), ratios

    def gain(self, num_nodes: int) -> float:
        return self._drafts.pool.gain(num_nodes)

    def choose(
        self, costs: StepCosts, margin: float, max_rows: int, max_nodes: int, least_gain: float
    ) -> tuple[int, list[TreeColumns | None]]:
        return self._drafts.choose(costs, margin, max_rows, max_nodes, least_gain)

    def choose_all(self, max_rows: int, max_nodes: int) -> list[TreeColumns | None]:
        return self._drafts.take(max(0, min(len(self._drafts.pool), max_rows)), max_nodes)

    def judge(
        self,
        sequence_id: int,
        token_ids: Sequence[int],
        scope: str,
        is_learning: bool,
        was_plain: bool,
    ) -> tuple[list[int], bool, bool] | None:
        state = self._states.get(sequence_id)
        if state is None or state.drafted is None or not token_ids:
            return None
        drafted, state.drafted = state.drafted, None
        is_right = drafted.begins_with(token_ids[0])
        is_right_of_model = drafted.begins_with(token_ids[0], of_model=True)
        drifted = self._verdicts.add(state, drafted, token_ids, scope) if is_learning else []
        if was_plain and is_right:
            state.was_right()
        return drifted, is_right, is_right_of_model

    def refresh(self) -> None:
        self._verdicts.calibration.refresh()

    def renew(self, source: int) -> None:
        self._verdicts.calibration.renew(source)

    def forget(self, sequence_id: int) -> None:
        state = self._states.pop(sequence_id, None)
        if state is not None:
            self._verdicts.end(state)

    def _state(self, sequence_id: int, now: int) -> RequestState:
        state = self._states.get(sequence_id)
        if state is None:
            state = self._states[sequence_id] = RequestState(now)
        return state
