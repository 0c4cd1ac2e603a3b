"""From what the drafters made for a step to one merged tree a sequence, with path probabilities.

Owns the order: calibrate each tree by its source and by how the sequence fares, tell the record of
promises what a model's trees promise, merge. It decides nothing.
"""

from collections.abc import Sequence
from functools import partial

from quickmatch.engine.speculation.calibration import Calibration
from quickmatch.engine.speculation.merging import NO_DRAFT, Merged, merge
from quickmatch.engine.speculation.promise import Promises
from quickmatch.engine.speculation.request_state import RequestState
from quickmatch.engine.speculation.step_drafts import StepDrafts
from quickmatch.engine.speculation.tree import MODEL_SOURCES, DraftTree


class Gatherer:
    """One engine's. floor: of path probability; what is below is not looked at."""

    def __init__(self, calibration: Calibration, promises: Promises, floor: float) -> None:
        self._calibration = calibration
        self._promises = promises
        self._floor = floor

    def gather(
        self,
        states: Sequence[RequestState],
        trees: Sequence[Sequence[DraftTree]],
        kept: Sequence[Merged | None],
        *,
        now: int,
        width: int,
        depth: int,
    ) -> StepDrafts:
        """Merge each sequence's trees, and note the result as what it has drafted.

        kept: by sequence what was merged before in this step, if it holds. width, depth: of the
        plan that a model drafted by.
        """
        merged: list[Merged] = []
        for state, drafts, before in zip(states, trees, kept, strict=True):
            if before is not None:
                merged.append(before)
                continue
            state.review(now)
            some = [tree for tree in drafts if tree.token_ids]
            state.drafted = self._merge(state, some, width, depth) if some else None
            merged.append(state.drafted or NO_DRAFT)
        return StepDrafts(states, merged, self._floor)

    def _merge(self, state: RequestState, trees: list[DraftTree], width: int, depth: int) -> Merged:
        calibration, first = self._calibration, trees[0]
        if len(trees) == 1 and first.sources[0] not in MODEL_SOURCES:
            likely = calibration.chain_probabilities(first, state.ratios, self._floor)
            if likely is not None:
                return Merged(first, likely, [], is_chain=True)
        paths: list[list[float]] = []
        for tree in trees:
            path = calibration.path_probabilities(tree, state.ratios, self._floor)
            paths.append(path)
            if tree.sources[0] in MODEL_SOURCES:
                # What is too unlikely to be verified is no gain.
                likely = [p if p > self._floor else 0.0 for p in path]
                state.promised(*self._promises.add(width, depth, tree, likely))
        if len(trees) == 1:
            return Merged(first, paths[0], [])
        return merge(trees, paths, partial(calibration.agreement.probability, 0, 1))
