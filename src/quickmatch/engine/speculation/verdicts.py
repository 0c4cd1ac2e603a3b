"""What verifications teach: calibration, each sequence's record, drift.

A verification tests the children of the sequence's last token and of every accepted node; of the
others nothing is known. Owns nothing but the way from one verdict to those who learn from it.
"""

from collections.abc import Sequence

from quickmatch.engine.speculation.calibration import Calibration
from quickmatch.engine.speculation.drift import DriftWatch
from quickmatch.engine.speculation.request_state import RequestState
from quickmatch.engine.speculation.tree import DraftTree, Source

_Tested = tuple[Source, int, int, float, bool]  # feature, depth, raw confidence, was it right


class Verdicts:
    """Learns from every verified draft."""

    def __init__(self) -> None:
        self.calibration = Calibration()
        self.drift = DriftWatch()
        self._with_news: set[Source] = set()

    def add(
        self, state: RequestState, tree: DraftTree, accepted: Sequence[int], scope: str
    ) -> set[Source]:
        """Learn from one verification; return the sources that turn out to have drifted.

        accepted: the nodes on the accepted path, in order.
        """
        depth_below = {-1: 1}
        for depth, node in enumerate(accepted, 2):
            depth_below[node] = depth
        tested: list[_Tested] = []
        for node, parent in enumerate(tree.parents):
            depth_here = depth_below.get(parent)
            if depth_here is not None:
                source, feature = tree.sources[node], tree.features[node]
                is_right = node in depth_below
                tested.append((source, feature, depth_here, tree.confidences[node], is_right))
        for twin in state.twins:
            depth_here = depth_below.get(tree.parents[twin.node]) if twin.node < len(tree) else None
            if depth_here is not None:
                is_right = twin.node in depth_below
                tested.append((twin.source, twin.feature, depth_here, twin.confidence, is_right))
                self.calibration.add_agreement(twin.together, is_right)
        state.twins = []
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
