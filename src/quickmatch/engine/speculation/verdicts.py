"""What the target's tokens teach: calibration, each sequence's record, drift.

The target's choice at a place judges every token that was drafted for it, verified or not; a
node deeper down is judged if the tokens before it were the target's. So a draft that was not worth
its verification still tells how good its first token was, and what is verified is no selection of
the lucky. Owns only the way from one verdict to those who learn from it.
"""

from collections.abc import Sequence

from quickmatch.engine.speculation.calibration import Calibration, SourceCalibration
from quickmatch.engine.speculation.drift import DriftTest, DriftWatch
from quickmatch.engine.speculation.merging import Merged
from quickmatch.engine.speculation.request_state import RequestState
from quickmatch.engine.speculation.tree import Source


class Verdicts:
    """Learns from every drafted tree and the tokens that came."""

    def __init__(self) -> None:
        self.calibration = Calibration()
        self.drift = DriftWatch()

    def add(
        self, state: RequestState, drafted: Merged, token_ids: Sequence[int], scope: str
    ) -> set[Source]:
        """Learn from the target's tokens; return the sources that turn out to have drifted.

        drafted: all that was drafted for the sequence in this step. token_ids: what the target
        chose, in order.
        """
        tree, last = drafted.tree, len(token_ids)
        tokens, sources = tree.token_ids, tree.sources
        features, confidences = tree.features, tree.confidences
        depths = {-1: 0}  # of the nodes that are the target's choice
        judges: dict[Source, _Judge] = {}
        for node, parent in enumerate(tree.parents):
            above = depths.get(parent, last)
            if above < last:
                is_right = tokens[node] == token_ids[above]
                if is_right:
                    depths[node] = above + 1
                judge = judges.get(sources[node]) or self._judge(judges, sources[node], scope)
                judge.add(features[node], above + 1, confidences[node], is_right)
                judge.places.add(parent)
        for twin in drafted.twins:
            above = depths.get(tree.parents[twin.node], last)
            if above < last:
                is_right = twin.node in depths
                judge = judges.get(twin.source) or self._judge(judges, twin.source, scope)
                judge.add(twin.feature, above + 1, twin.confidence, is_right)
                judge.places.add(tree.parents[twin.node])
                self.calibration.agreement.judge(0, 1, twin.together, is_right)
        state.scope = scope
        for source, judge in judges.items():
            state.add(source, judge.foretold, judge.found)
            acceptance = state.count(source, len(judge.places), judge.found)
            if acceptance is not None:
                self.drift.add_block(scope, source, acceptance)
        drifted = {source for source, judge in judges.items() if judge.has_drifted}
        for source in drifted:
            self.calibration.of(source).soften()
        return drifted

    def end(self, state: RequestState) -> None:
        """Learn from the end of a sequence how its drafts fared on the whole."""
        for source in Source:
            acceptance = state.take_block(source)
            if acceptance is not None:
                self.drift.add_block(state.scope, source, acceptance)

    def _judge(self, judges: dict[Source, "_Judge"], source: Source, scope: str) -> "_Judge":
        judge = _Judge(self.calibration.of(source), self.drift.test(scope, source))
        judges[source] = judge
        return judge


class _Judge:
    """One source's tokens in one verdict."""

    __slots__ = ("_calibration", "_test", "foretold", "found", "has_drifted", "places")

    def __init__(self, calibration: SourceCalibration, test: DriftTest) -> None:
        self._calibration, self._test = calibration, test
        self.foretold = 0.0
        self.found = 0
        self.has_drifted = False
        self.places: set[int] = set()  # nodes whose children were judged

    def add(self, feature: int, depth: int, confidence: float, is_right: bool) -> None:
        chance = self._calibration.judge(feature, depth, confidence, is_right)
        self.foretold += chance
        self.found += is_right
        if self._test.add_token(chance, is_right):
            self.has_drifted = True
