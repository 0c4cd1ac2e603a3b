"""How often a drafted token is right, given that the path to it was.

Owns the counts of what was judged, by source, raw confidence, feature and depth, and the tables
read from them. It does not know sequences: what tells one apart is a ratio that the caller passes
(request_state.py).

Three levels, each shrunk to the one above: source × confidence, to the raw confidence times what
the source has earned so far; × feature; × depth. Acceptance does not fall with the confidence
(isotonic). A source that nobody has judged is believed at its word, so a fresh system tries. A
cell's counts are halved when they reach a bound, so that old evidence fades.

The tables are made again for one slice (source, feature) at a time, once it has enough news.

Source: shrinkage as in empirical Bayes. The twin of src/native/speculation/calibration.hpp.
"""

from collections.abc import Sequence
from operator import mul

from quickmatch.engine.speculation.calibration_grid import (
    C_OF,
    CONFIDENCES,
    D_OF,
    F_OF,
    GRID,
    MAX_DEPTH,
    NUM_C,
    NUM_D,
    NUM_F,
    by_depth,
    on_grid,
)
from quickmatch.engine.speculation.in_order import in_order
from quickmatch.engine.speculation.isotonic import isotonic
from quickmatch.engine.speculation.tree import DraftTree, Source

MAX_PROBABILITY = 0.985  # nothing is certain; and a child stays behind its parent
MIN_PROBABILITY = 0.004
_BOUND = 96.0  # judgements that a cell keeps, at most
_PRIORS = (4.0, 6.0, 10.0)  # judgements that the level above is worth, by level
_MAX_NEWS = 64  # judgements after which a slice's table is made again, at the latest
_MIN_STEPS = 4  # between two tables of a source, once it is known; a divisor of:
_TURN_STEPS = 16  # after which the next slice has its turn
_SOURCE_PRIOR = 8.0
_HOPELESS = 0.01  # of its parent's: a node whose parent is below the floor
_SOFTENED = 0.03  # of the evidence stays when it has become doubtful

_CHAIN = list(range(-1, MAX_DEPTH - 1))  # the parents of a chain


class SourceCalibration:
    """Acceptance of one source's tokens."""

    def __init__(self) -> None:
        self._tested = [0.0] * (NUM_F * NUM_D * NUM_C)  # by feature, depth, confidence
        self._accepted = [0.0] * (NUM_F * NUM_D * NUM_C)
        self._sums = [([0.0] * NUM_C, [0.0] * NUM_C)] * NUM_F  # over depths: tested, accepted
        self._news = [0] * NUM_F
        self._evidence = [0.0] * NUM_F
        self._num_steps = 0
        self._has_news = False  # since the last round of turns
        self._turn = 0
        self.rows: list[list[list[float]]] = []  # [feature bucket][depth][grid of confidence]
        for feature in range(NUM_F):
            self.rows.append([])
            self._refresh(feature)

    def probability(self, feature: int, depth: int, confidence: float) -> float:
        """Return P(a token is right | the path to it was). feature, depth: at most
        MAX_FEATURE and MAX_DEPTH."""
        return self.rows[F_OF[feature]][depth][int(confidence * GRID)]

    def judge(self, feature: int, depth: int, confidence: float, is_right: bool) -> float:
        """Count one token whose parent was right; return the probability it had been given."""
        grid, f = int(confidence * GRID), F_OF[feature]
        cell = (f * NUM_D + D_OF[depth]) * NUM_C + C_OF[grid]
        tested, accepted = self._tested, self._accepted
        tested[cell] += 1.0
        if is_right:
            accepted[cell] += 1.0
        if tested[cell] > _BOUND:
            tested[cell] *= 0.5
            accepted[cell] *= 0.5
        self._news[f] += 1
        self._has_news = True
        return self.rows[f][depth][grid]

    def refresh(self) -> None:
        """Between two steps: make one slice's table again if it has news enough, or its turn.

        The turn is for slices without news of their own: they lean on the others'.
        """
        if not self._has_news:
            return
        self._num_steps += 1
        if self._num_steps % _TURN_STEPS == 0:
            self._turn = (self._turn + 1) % NUM_F
            self._has_news = self._turn != 0
            self._refresh(self._turn)
            return
        due = [
            news / max(1.0, min(evidence / 8, _MAX_NEWS))
            for news, evidence in zip(self._news, self._evidence, strict=True)
        ]
        f = due.index(max(due))
        is_known = self._evidence[f] > _MAX_NEWS
        if due[f] >= 1.0 and (not is_known or self._num_steps % _MIN_STEPS == 0):
            self._refresh(f)

    def soften(self) -> None:
        """Keep the tables, doubt the evidence: what is judged next counts much more."""
        self._tested = [value * _SOFTENED for value in self._tested]
        self._accepted = [value * _SOFTENED for value in self._accepted]
        for f in range(NUM_F):
            self._sum(f)
            self._evidence[f] = 0.0

    def _sum(self, f: int) -> None:
        """Sum the counts of a slice over depths."""
        start, end = f * NUM_D * NUM_C, (f + 1) * NUM_D * NUM_C
        tested, accepted = self._tested[start:end], self._accepted[start:end]
        self._sums[f] = (
            [in_order(tested[c::NUM_C]) for c in range(NUM_C)],
            [in_order(accepted[c::NUM_C]) for c in range(NUM_C)],
        )

    def _refresh(self, f: int) -> None:
        self._sum(f)
        all_tested = [in_order(column) for column in zip(*(t for t, _ in self._sums), strict=True)]
        all_accepted = [
            in_order(column) for column in zip(*(a for _, a in self._sums), strict=True)
        ]
        expected = in_order(map(mul, all_tested, CONFIDENCES))
        ratio = (in_order(all_accepted) + _SOURCE_PRIOR) / (expected + _SOURCE_PRIOR)
        means = [min(c * ratio, MAX_PROBABILITY) for c in CONFIDENCES]
        means = _shrunk(all_tested, all_accepted, means, _PRIORS[0])
        means = isotonic(means, [tested + _PRIORS[0] for tested in all_tested])
        means = _shrunk(*self._sums[f], means, _PRIORS[1])
        tables: list[list[float]] = []
        for d in range(NUM_D):
            start = (f * NUM_D + d) * NUM_C
            tested = self._tested[start : start + NUM_C]
            accepted = self._accepted[start : start + NUM_C]
            values = _shrunk(tested, accepted, means, _PRIORS[2])
            values = isotonic(values, [t + _PRIORS[2] for t in tested])
            values = [min(max(v, MIN_PROBABILITY), MAX_PROBABILITY) for v in values]
            tables.append(on_grid(values))
        self.rows[f] = by_depth(tables)
        self._news[f] = 0
        self._evidence[f] = in_order(self._sums[f][0])


def _shrunk(
    tested: Sequence[float], accepted: Sequence[float], priors: Sequence[float], strength: float
) -> list[float]:
    """Return the shares accepted, each shrunk to its prior, which counts for `strength` tests."""
    return [
        (a + strength * prior) / (t + strength)
        for t, a, prior in zip(tested, accepted, priors, strict=True)
    ]


class Calibration:
    """Acceptance of the tokens of every source, which are told by their numbers."""

    def __init__(self) -> None:
        self._sources = [SourceCalibration() for _ in Source]
        self.agreement = SourceCalibration()  # of tokens that two drafters propose: merging.py

    def of(self, source: int) -> SourceCalibration:
        """Return one source's."""
        return self._sources[source]

    def refresh(self) -> None:
        """Between two steps: take news into the tables, where there is enough."""
        for source in self._sources:
            source.refresh()
        self.agreement.refresh()

    def renew(self, source: int) -> None:
        """Forget what is known of a source: it is another one now."""
        self._sources[source] = SourceCalibration()

    def path_probabilities(
        self, tree: DraftTree, ratios: Sequence[float], floor: float = 0.0
    ) -> list[float]:
        """Return each node's probability that it and all before it are right.

        ratios: [source], what the sequence's acceptance is of the usual. Behind a node below the
        floor nothing is looked up: those are told as next to impossible.
        """
        out: list[float] = []
        depths: list[int] = []
        sources, last, rows, ratio = self._sources, (-1, -1), self._sources[0].rows[0], 1.0
        for parent, confidence, source, feature in zip(
            tree.parents, tree.confidences, tree.sources, tree.features, strict=True
        ):
            if parent < 0:
                depth, path = 1, 1.0
            else:
                depth, path = depths[parent] + 1, out[parent]
            depths.append(depth)
            if path < floor:
                out.append(path * _HOPELESS)
                continue
            if last != (source, feature):
                last = source, feature
                rows, ratio = sources[source].rows[F_OF[feature]], ratios[source]
            chance = rows[depth][int(confidence * GRID)] * ratio
            out.append(path * (chance if chance < MAX_PROBABILITY else MAX_PROBABILITY))
        return out

    def chain_probabilities(
        self, tree: DraftTree, ratios: Sequence[float], floor: float
    ) -> list[float] | None:
        """Return the same for a chain of one source down to the floor; None if it is none.

        The usual draft's short way: what is not likely enough needs no number.
        """
        size, source, feature = len(tree), tree.sources[0], tree.features[0]
        if (
            tree.parents != _CHAIN[:size]
            or tree.sources.count(source) != size
            or tree.features.count(feature) != size
        ):
            return None
        ratio, rows = ratios[source], self._sources[source].rows[F_OF[feature]]
        path, out = 1.0, []
        for depth, confidence in enumerate(tree.confidences, 1):
            chance = rows[depth][int(confidence * GRID)] * ratio
            path *= chance if chance < MAX_PROBABILITY else MAX_PROBABILITY
            if path < floor:
                break
            out.append(path)
        return out
