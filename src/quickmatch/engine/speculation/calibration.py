"""How often a drafted token is right, given that the path to it was.

Owns the counts of what was verified, by source, raw confidence, feature and depth, and the tables
read from them. It does not know sequences: what tells one apart is a ratio that the caller passes
(`requests.py`).

Three levels, each shrunk to the one above: source × confidence, to the raw confidence times what
the source has earned so far; × feature; × depth. At every level the acceptance does not fall with
the confidence (isotonic). A source that nobody has verified is believed at its word, so a fresh
system tries. Counts are halved when they reach a bound, so that old evidence fades.

The tables are made again for one slice (source, feature) at a time, once it has enough news.

Source: calibrated path probabilities, SPECULATION.md §7; shrinkage as in empirical Bayes.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul

from quickmatch.engine.speculation.isotonic import isotonic
from quickmatch.engine.speculation.tree import DraftTree, Source

MAX_PROBABILITY = 0.985  # nothing is certain; and a child stays behind its parent
MIN_PROBABILITY = 0.004
_GRID = 64  # raw confidences are looked up in steps of 1/64
_CONFIDENCES = (0.0, 0.05, 0.12, 0.22, 0.35, 0.5, 0.65, 0.78, 0.88, 0.94, 0.98, 1.0)  # centres
_FEATURES = (2, 4, 8, 16, 32, 64)  # upper ends of the buckets
_DEPTHS = (1, 3, 7, 1000)
_MAX_DEPTH = 64  # of a draft; the controller cuts deeper ones
_BOUNDS = (256.0, 192.0, 96.0)  # observations a cell of each level keeps, at most
_PRIORS = (4.0, 6.0, 10.0)  # observations that the level above is worth
_SOURCE_PRIOR = 8.0
_SOFTENED = 0.03  # of the evidence stays when it has become doubtful

_CHAIN = list(range(-1, _MAX_DEPTH - 1))  # the parents of a chain

_NUM_C, _NUM_F, _NUM_D = len(_CONFIDENCES), len(_FEATURES), len(_DEPTHS)


def _bucket(ends: Sequence[int], value: int) -> int:
    return next((i for i, end in enumerate(ends) if value <= end), len(ends) - 1)


def _confidence_bucket(grid: int) -> int:
    middles = [(a + b) / 2 for a, b in pairwise(_CONFIDENCES)]
    return sum(grid / _GRID > middle for middle in middles)


_C_OF = tuple(_confidence_bucket(i) for i in range(_GRID + 1))
_F_OF = tuple(_bucket(_FEATURES, i) for i in range(65))
_D_OF = tuple(_bucket(_DEPTHS, i) for i in range(_MAX_DEPTH + 1))


def _grid_weights() -> tuple[tuple[int, int, float], ...]:
    """For each raw confidence of the grid the two centres around it and the upper one's share."""
    out = []
    for grid in range(_GRID + 1):
        confidence = grid / _GRID
        high = next(i for i, centre in enumerate(_CONFIDENCES) if confidence <= centre)
        low = max(high - 1, 0)
        width = _CONFIDENCES[high] - _CONFIDENCES[low]
        share = (confidence - _CONFIDENCES[low]) / width if width else 1.0
        out.append((low, high, share))
    return tuple(out)


_WEIGHTS = _grid_weights()


class _Level:
    """Counts of one level, flat; `tested` and `accepted` by cell."""

    __slots__ = ("_bound", "accepted", "tested")

    def __init__(self, size: int, bound: float) -> None:
        self.tested = [0.0] * size
        self.accepted = [0.0] * size
        self._bound = bound

    def add(self, cell: int, accepted: bool) -> None:
        tested = self.tested[cell] + 1.0
        if accepted:
            self.accepted[cell] += 1.0
        if tested > self._bound:
            tested *= 0.5
            self.accepted[cell] *= 0.5
        self.tested[cell] = tested

    def scale(self, factor: float) -> None:
        self.tested = [value * factor for value in self.tested]
        self.accepted = [value * factor for value in self.accepted]

    def means(self, start: int, priors: Sequence[float], strength: float) -> list[float]:
        """The cells from `start` on, each shrunk to its prior."""
        end = start + len(priors)
        return [
            (accepted + strength * prior) / (tested + strength)
            for accepted, tested, prior in zip(
                self.accepted[start:end], self.tested[start:end], priors, strict=True
            )
        ]

    def weights(self, start: int, strength: float) -> list[float]:
        return [tested + strength for tested in self.tested[start : start + _NUM_C]]


class SourceCalibration:
    """Acceptance of one source's tokens."""

    def __init__(self) -> None:
        self._by_confidence = _Level(_NUM_C, _BOUNDS[0])
        self._by_feature = _Level(_NUM_F * _NUM_C, _BOUNDS[1])
        self._by_depth = _Level(_NUM_F * _NUM_D * _NUM_C, _BOUNDS[2])
        self._expected = self._earned = _SOURCE_PRIOR
        self._news = [0] * _NUM_F
        self._evidence = [0.0] * _NUM_F
        self.rows: list[list[list[float]]] = []  # [feature bucket][depth][grid of confidence]
        for feature in range(_NUM_F):
            self.rows.append([])
            self._refresh(feature)

    def add(self, feature: int, depth: int, confidence: float, accepted: bool) -> None:
        """Count one verified token, one whose parent was accepted."""
        c = _C_OF[int(confidence * _GRID)]
        f = _F_OF[feature]
        self._by_confidence.add(c, accepted)
        self._by_feature.add(f * _NUM_C + c, accepted)
        self._by_depth.add((f * _NUM_D + _D_OF[min(depth, _MAX_DEPTH)]) * _NUM_C + c, accepted)
        self._expected += _CONFIDENCES[c]
        self._earned += accepted
        if self._expected > _BOUNDS[0]:
            self._expected *= 0.5
            self._earned *= 0.5
        self._news[f] += 1

    def refresh(self) -> bool:
        """Make the tables again of the slice with the most news, if it is worth it."""
        news = max(self._news)
        if news == 0:
            return False
        f = self._news.index(news)
        if news < min(self._evidence[f] / 8, 24):
            return False
        self._refresh(f)
        return True

    def soften(self) -> None:
        """Keep the tables, doubt the evidence: what is verified next counts much more."""
        for level in (self._by_confidence, self._by_feature, self._by_depth):
            level.scale(_SOFTENED)
        self._expected = _SOURCE_PRIOR + _SOFTENED * (self._expected - _SOURCE_PRIOR)
        self._earned = _SOURCE_PRIOR + _SOFTENED * (self._earned - _SOURCE_PRIOR)
        self._evidence = [0.0] * _NUM_F

    def _refresh(self, f: int) -> None:
        ratio = self._earned / self._expected
        raw = [min(c * ratio, MAX_PROBABILITY) for c in _CONFIDENCES]
        means = self._by_confidence.means(0, raw, _PRIORS[0])
        means = isotonic(means, self._by_confidence.weights(0, _PRIORS[0]))
        start = f * _NUM_C
        means = self._by_feature.means(start, means, _PRIORS[1])
        slices: list[list[float]] = []
        for d in range(_NUM_D):
            cell = (f * _NUM_D + d) * _NUM_C
            values = self._by_depth.means(cell, means, _PRIORS[2])
            slices.append(_expand(isotonic(values, self._by_depth.weights(cell, _PRIORS[2]))))
        self.rows[f] = [slices[d] for d in _D_OF]
        self._news[f] = 0
        self._evidence[f] = sum(self._by_feature.tested[start : start + _NUM_C])


def _expand(values: list[float]) -> list[float]:
    """Return the values at the confidences of the grid."""
    values = [min(max(v, MIN_PROBABILITY), MAX_PROBABILITY) for v in values]
    return [values[low] * (1.0 - share) + values[high] * share for low, high, share in _WEIGHTS]


class Calibration:
    """Acceptance of the tokens of every source."""

    def __init__(self) -> None:
        self._sources = [SourceCalibration() for _ in Source]
        self._agreement = SourceCalibration()

    def probability(self, source: Source, feature: int, depth: int, confidence: float) -> float:
        """Return P(the token is accepted | the path to it was)."""
        rows = self._sources[source].rows[_F_OF[feature]]
        return rows[min(depth, _MAX_DEPTH)][int(confidence * _GRID)]

    def add(
        self, source: Source, feature: int, depth: int, confidence: float, accepted: bool
    ) -> None:
        """Count one verified token, one whose parent was accepted."""
        self._sources[source].add(feature, depth, confidence, accepted)

    def agreement(self, confidence: float) -> float:
        """Return P(accepted) of a token on which two drafters agree; see merging.py."""
        return self._agreement.rows[0][1][int(confidence * _GRID)]

    def add_agreement(self, confidence: float, accepted: bool) -> None:
        """Count one verified token on which two drafters agreed."""
        self._agreement.add(0, 1, confidence, accepted)

    def refresh(self, source: Source) -> bool:
        """Take news of a source into its tables, if there is enough; return whether it did."""
        return self._sources[source].refresh() or self._agreement.refresh()

    def soften(self, source: Source) -> None:
        """Doubt what is known of a source: it has drifted."""
        self._sources[source].soften()

    def renew(self, source: Source) -> None:
        """Forget what is known of a source: it is another one now."""
        self._sources[source] = SourceCalibration()

    def path_probabilities(self, tree: DraftTree, ratios: Sequence[float]) -> list[float]:
        """Return each node's probability that it and all before it are accepted.

        ratios: [source], what the sequence's acceptance is of the usual. The controller's inner
        loop: a chain of one source and feature, the usual, takes the short way.
        """
        size = len(tree)
        if not size:
            return []
        source, feature, parents = tree.sources[0], tree.features[0], tree.parents
        if (
            parents == _CHAIN[:size]
            and tree.sources.count(source) == size
            and tree.features.count(feature) == size
        ):
            ratio, rows = ratios[source], self._sources[source].rows[_F_OF[feature]]
            chances = [
                row[int(c * _GRID)] * ratio
                for row, c in zip(rows[1:], tree.confidences, strict=False)
            ]
            if ratio > 1.0:
                chances = [min(chance, MAX_PROBABILITY) for chance in chances]
            return list(accumulate(chances, mul))
        return self._tree_probabilities(tree, ratios)

    def _tree_probabilities(self, tree: DraftTree, ratios: Sequence[float]) -> list[float]:
        out: list[float] = []
        depths: list[int] = []
        tables = [source.rows for source in self._sources]
        for parent, confidence, source, feature in zip(
            tree.parents, tree.confidences, tree.sources, tree.features, strict=True
        ):
            depth = 1 if parent < 0 else depths[parent] + 1
            depths.append(depth)
            chance = tables[source][_F_OF[feature]][depth][int(confidence * _GRID)]
            chance *= ratios[source]
            if chance > MAX_PROBABILITY:
                chance = MAX_PROBABILITY
            out.append(chance if parent < 0 else chance * out[parent])
        return out
