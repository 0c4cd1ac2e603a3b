"""What the target's tokens teach: calibration, each sequence's record, drift.

The target's choice at a place judges every token that was drafted for it, verified or not; a
node deeper down is judged if the tokens before it were the target's. So a draft that was not worth
its verification still tells how good its first token was, and what is verified is no selection of
the lucky. Owns only the way from one verdict to those who learn from it.

The twin of src/native/speculation/verdicts.hpp.
"""

from collections.abc import Sequence

from quickmatch.engine.speculation.calibration import Calibration, SourceCalibration
from quickmatch.engine.speculation.drift import DriftTest, DriftWatch
from quickmatch.engine.speculation.merging import Merged
from quickmatch.engine.speculation.request_state import RequestState
from quickmatch.engine.speculation.tree import Source


class _Judge:
    """One source's tokens in one verdict. Used again: a verdict is given for every sequence."""

    __slots__ = ("calibration", "foretold", "found", "has_drifted", "places", "source", "test")

    def __init__(self, source: int) -> None:
        self.source = source

    def begin(self, calibration: SourceCalibration, test: DriftTest) -> None:
        self.calibration, self.test = calibration, test
        self.foretold = 0.0
        self.found = 0
        self.has_drifted = False
        self.places: list[int] = []  # nodes whose children were judged

    def add(self, place: int, feature: int, depth: int, confidence: float, is_right: bool) -> None:
        chance = self.calibration.judge(feature, depth, confidence, is_right)
        self.foretold += chance
        self.found += is_right
        if place not in self.places:
            self.places.append(place)
        if self.test.add_token(chance, is_right):
            self.has_drifted = True


class Verdicts:
    """Learns from every drafted tree and the tokens that came."""

    def __init__(self) -> None:
        self.calibration = Calibration()
        self.drift = DriftWatch()
        self._judges = [_Judge(source) for source in Source]

    def add(
        self, state: RequestState, drafted: Merged, token_ids: Sequence[int], scope: str
    ) -> list[int]:
        """Learn from the target's tokens; return the sources that turn out to have drifted.

        drafted: all that was drafted for the sequence in this step. token_ids: what the target
        chose, in order.
        """
        tree, last = drafted.tree, len(token_ids)
        tokens, sources = tree.token_ids, tree.sources
        features, confidences = tree.features, tree.confidences
        depths = {-1: 0}  # of the nodes that are the target's choice
        judges: list[_Judge] = []
        if drafted.is_chain:
            judge = self._judge(judges, sources[0], scope)
            for node, (token_id, wanted) in enumerate(zip(tokens, token_ids, strict=False)):
                is_right = token_id == wanted
                judge.add(node - 1, features[node], node + 1, confidences[node], is_right)
                if not is_right:
                    break
            return self._close(state, judges, scope)
        for node, parent in enumerate(tree.parents):
            above = depths.get(parent, last)
            if above < last:
                is_right = tokens[node] == token_ids[above]
                if is_right:
                    depths[node] = above + 1
                judge = self._judge(judges, sources[node], scope)
                judge.add(parent, features[node], above + 1, confidences[node], is_right)
        for twin in drafted.twins:
            parent = tree.parents[twin.node]
            above = depths.get(parent, last)
            if above < last:
                is_right = twin.node in depths
                judge = self._judge(judges, twin.source, scope)
                judge.add(parent, twin.feature, above + 1, twin.confidence, is_right)
                self.calibration.agreement.judge(0, 1, twin.together, is_right)
        return self._close(state, judges, scope)

    def end(self, state: RequestState) -> None:
        """Learn from the end of a sequence how its drafts fared on the whole."""
        for source in Source:
            acceptance = state.take_block(source)
            if acceptance is not None:
                self.drift.add_block(state.scope, source, acceptance)

    def _judge(self, judges: list[_Judge], source: int, scope: str) -> _Judge:
        judge = self._judges[source]
        if judge not in judges:
            judge.begin(self.calibration.of(source), self.drift.test(scope, source))
            judges.append(judge)
        return judge

    def _close(self, state: RequestState, judges: list[_Judge], scope: str) -> list[int]:
        """Tell the sequence's record, the traffic's and calibration; return who has drifted."""
        state.scope = scope
        for judge in judges:
            state.add(judge.source, judge.foretold, judge.found)
            acceptance = state.count(judge.source, len(judge.places), judge.found)
            if acceptance is not None:
                self.drift.add_block(scope, judge.source, acceptance)
            if judge.has_drifted:
                self.calibration.of(judge.source).soften()
        return [judge.source for judge in judges if judge.has_drifted]
