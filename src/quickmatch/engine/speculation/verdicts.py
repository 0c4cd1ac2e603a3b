"""What the target's tokens teach: calibration, each sequence's record, drift.

The target's choice at a place judges every token that was drafted for it, verified or not; a
node deeper down is judged if the tokens before it were the target's. So a draft that was not worth
its verification still tells how good its first token was, and what is verified is no selection of
the lucky. Owns only the way from one verdict to those who learn from it.
"""

from collections.abc import Sequence

from quickmatch.engine.speculation.calibration import Calibration
from quickmatch.engine.speculation.drift import DriftWatch
from quickmatch.engine.speculation.merging import Merged
from quickmatch.engine.speculation.request_state import RequestState
from quickmatch.engine.speculation.tree import Source

_Tested = tuple[Source, int, int, float, bool]  # feature, depth, raw confidence, was it right


class Verdicts:
    """Learns from every drafted tree and the tokens that came."""

    def __init__(self) -> None:
        self.calibration = Calibration()
        self.drift = DriftWatch()
        self._with_news: set[Source] = set()

    def add(
        self, state: RequestState, drafted: Merged, token_ids: Sequence[int], scope: str
    ) -> set[Source]:
        """Learn from the target's tokens; return the sources that turn out to have drifted.

        drafted: all that was drafted for the sequence in this step. token_ids: what the target
        chose, in order.
        """
        tree, last = drafted.tree, len(token_ids)
        depths = {-1: 0}  # of the nodes that are the target's choice
        tested: list[_Tested] = []
        for node, parent in enumerate(tree.parents):
            above = depths.get(parent)
            if above is None or above == last:
                continue
            is_right = tree.token_ids[node] == token_ids[above]
            if is_right:
                depths[node] = above + 1
            tested.append(
                (
                    tree.sources[node],
                    tree.features[node],
                    above + 1,
                    tree.confidences[node],
                    is_right,
                )
            )
        for twin in drafted.twins:
            above = depths.get(tree.parents[twin.node])
            if above is not None and above < last:
                is_right = twin.node in depths
                tested.append((twin.source, twin.feature, above + 1, twin.confidence, is_right))
                self.calibration.add_agreement(twin.together, is_right)
        return self._learn(state, tested, scope)

    def _learn(self, state: RequestState, tested: list[_Tested], scope: str) -> set[Source]:
        foretold: dict[Source, float] = {}
        found: dict[Source, float] = {}
        drifted: set[Source] = set()
        for source, feature, depth, confidence, is_right in tested:
            chance = self.calibration.probability(source, feature, depth, confidence)
            self.calibration.add(source, feature, depth, confidence, is_right)
            foretold[source] = foretold.get(source, 0.0) + chance
            found[source] = found.get(source, 0.0) + is_right
            if self.drift.add(scope, source, chance, is_right):
                drifted.add(source)
        for source, chance in foretold.items():
            state.add(source, chance, found[source])
        for source in drifted:
            self.calibration.soften(source)
        self._with_news.update(foretold)
        return drifted

    def refresh(self) -> None:
        """Between two steps: take the news of at most one source into its tables."""
        for source in self._with_news:
            if self.calibration.refresh(source):
                return
        self._with_news.clear()
