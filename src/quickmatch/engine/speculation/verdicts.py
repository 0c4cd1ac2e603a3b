"""What verifications teach: calibration, each sequence's record, drift.

A verification tests the children of the sequence's last token and of every accepted node; of the
others nothing is known. Owns nothing but the way from one verdict to those who learn from it.
"""

from collections.abc import Sequence

from quickmatch.engine.speculation.calibration import Calibration
from quickmatch.engine.speculation.drift import DriftWatch
from quickmatch.engine.speculation.request_state import RequestState
from quickmatch.engine.speculation.tree import DraftTree, Source

_TELLING = 0.25  # foretold; tokens below it say nothing of a fall


class Verdicts:
    """Learns from every verified draft."""

    def __init__(self) -> None:
        self.calibration = Calibration()
        self.drift = DriftWatch()
        self._with_news: set[Source] = set()

    def add(
        self, state: RequestState, tree: DraftTree, accepted: Sequence[int], scope: str
    ) -> None:
        """Learn from one verification. accepted: the nodes on the accepted path, in order."""
        depth_below = {-1: 1}
        for depth, node in enumerate(accepted, 2):
            depth_below[node] = depth
        foretold: dict[Source, float] = {}
        found: dict[Source, float] = {}
        drifted: set[Source] = set()
        for node, parent in enumerate(tree.parents):
            node_depth = depth_below.get(parent)
            if node_depth is None:
                continue
            source, is_right = tree.sources[node], node in depth_below
            chance = self._learn(
                source, tree.features[node], node_depth, tree.confidences[node], is_right
            )
            foretold[source] = foretold.get(source, 0.0) + chance
            found[source] = found.get(source, 0.0) + is_right
            if chance > _TELLING and self.drift.add(scope, source, chance - is_right):
                drifted.add(source)
        for source, chance in foretold.items():
            state.add(source, chance, found[source])
        self._judge_twins(state, tree, depth_below)
        for source in drifted:
            self.calibration.soften(source)
        self._with_news.update(foretold)

    def refresh(self) -> None:
        """Between two steps: take the news of at most one source into its tables."""
        for source in self._with_news:
            if self.calibration.refresh(source):
                return
        self._with_news.clear()

    def _judge_twins(
        self, state: RequestState, tree: DraftTree, depth_below: dict[int, int]
    ) -> None:
        for twin in state.twins:
            if twin.node < len(tree):
                depth = depth_below.get(tree.parents[twin.node])
                if depth is not None:
                    is_right = twin.node in depth_below
                    self._learn(twin.source, twin.feature, depth, twin.confidence, is_right)
        state.twins = []

    def _learn(
        self, source: Source, feature: int, depth: int, confidence: float, is_right: bool
    ) -> float:
        chance = self.calibration.probability(source, feature, depth, confidence)
        self.calibration.add(source, feature, depth, confidence, is_right)
        return chance
