"""The rating model: gradient boosted trees that rate an applicant and say what weighed most.

It regresses the later outcome (poor 0, normal 1, good 2) on the ten fields, with a monotone
constraint for each field, as scorecards have: more late payments never raise a rating. Two cuts
on the score, learned on the training part, turn it into a rating.

What a field contributed to one applicant's score is measured by substitution: the score as it is,
less the mean score when this field alone is replaced by values of other applicants (evenly spaced
quantiles of the training part). Above zero the field helped, below zero it hurt. The factors of a
rating are the fields of largest contribution, either way.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.inspection import permutation_importance
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from examples.credit_cards.applicants import Matrix, Population, Reals, stream
from examples.credit_cards.fields import FIELDS, RATINGS, Field

NUM_FACTORS = 3
NUM_SUBSTITUTES = 20  # values of other applicants tried in place of one field
HELD_OUT_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Factor:
    """A field that weighed in a rating. `contribution` is in score points (0 poor … 2 good)."""

    field: Field
    value: int
    contribution: float

    @property
    def helped(self) -> bool:
        """Whether it raised the score."""
        return self.contribution >= 0


@dataclass(frozen=True, slots=True)
class RatedApplicant:
    """An applicant's values in FIELDS' order, the rating given, and its factors, largest first."""

    values: tuple[int, ...]
    rating: str
    factors: tuple[Factor, ...]


@dataclass(frozen=True, slots=True)
class Importance:
    """How much held-out accuracy drops when a field's values are shuffled: mean and spread."""

    field: Field
    drop: float
    spread: float


class RatingModel:
    """A fitted model, with what was measured on its held-out applicants."""

    def __init__(self, population: Population, seed: int) -> None:
        """Fit. Raises ValueError if an outcome is missing from `population`."""
        absent = [r for i, r in enumerate(RATINGS) if not (population.outcomes == i).any()]
        if absent:
            raise ValueError(f"no applicant turned out {absent[0]}; simulate more applicants")
        with threadpool_limits(limits=1):  # some thousand rows: threads only wait for one another
            self._fit(population, seed)

    def _fit(self, population: Population, seed: int) -> None:
        split = int(len(population) * (1 - HELD_OUT_SHARE))
        values, outcomes = population.values, population.outcomes
        self._trees = HistGradientBoostingRegressor(
            max_iter=120,
            learning_rate=0.07,
            max_leaf_nodes=12,
            min_samples_leaf=20,
            l2_regularization=1.0,
            monotonic_cst=[field.trend for field in FIELDS],
            random_state=seed,
        ).fit(values[:split], outcomes[:split])
        self._cuts = _best_cuts(self.score(values[:split]), outcomes[:split])
        self._substitutes = np.quantile(
            values[:split], np.linspace(0.025, 0.975, NUM_SUBSTITUTES), axis=0, method="nearest"
        )  # [NUM_SUBSTITUTES, 10]
        self.accuracy = float(np.mean(self.predict(values[split:]) == outcomes[split:]))
        self.num_held_out = len(population) - split
        self.importances = self._importances(values[split:], outcomes[split:], seed)

    def score(self, values: Matrix) -> Reals:
        """Return the expected outcome, 0 (poor) to 2 (good), of each row of [count, 10]."""
        with threadpool_limits(limits=1):
            return np.asarray(self._trees.predict(values), dtype=np.float64)

    def predict(self, values: Matrix) -> NDArray[np.int64]:
        """Return the rating, an index into RATINGS, of each row."""
        return np.asarray(np.searchsorted(self._cuts, self.score(values)), dtype=np.int64)

    def contributions(self, values: Matrix) -> Reals:
        """Return each field's contribution to each row's score, [count, 10]."""
        as_is = self.score(values)
        result = np.empty(values.shape)
        for column in range(values.shape[1]):
            changed = np.repeat(values, NUM_SUBSTITUTES, axis=0)
            changed[:, column] = np.tile(self._substitutes[:, column], len(values))
            mean = self.score(changed).reshape(len(values), NUM_SUBSTITUTES).mean(axis=1)
            result[:, column] = as_is - mean
        return result

    def rate(self, values: Matrix) -> list[RatedApplicant]:
        """Rate each row and name its factors."""
        ratings, contributions = self.predict(values), self.contributions(values)
        order = np.argsort(-np.abs(contributions), axis=1, kind="stable")[:, :NUM_FACTORS]
        return [
            RatedApplicant(
                values=tuple(int(v) for v in row),
                rating=RATINGS[rating],
                factors=tuple(Factor(FIELDS[c], int(row[c]), float(gains[c])) for c in columns),
            )
            for row, rating, gains, columns in zip(
                values, ratings, contributions, order, strict=True
            )
        ]

    def _importances(self, values: Matrix, outcomes: Matrix, seed: int) -> list[Importance]:
        def accuracy(_: object, x: Matrix, y: Matrix) -> float:
            return float(np.mean(self.predict(x) == y))

        found = permutation_importance(
            self._trees, values, outcomes, scoring=accuracy, n_repeats=5, random_state=seed
        )
        pairs = zip(FIELDS, found.importances_mean, found.importances_std, strict=True)
        return sorted((Importance(f, float(m), float(s)) for f, m, s in pairs), key=_drop)


def stratified(model: RatingModel, num_per_rating: int, seed: int) -> list[RatedApplicant]:
    """Rate new applicants as they come until each rating has as many; in mixed order.

    No two share all their values, so that no held-out applicant is among those learned from.
    """
    wanted: list[list[tuple[int, ...]]] = [[] for _ in RATINGS]
    seen: set[tuple[int, ...]] = set()
    for values in stream(seed):
        for row, rating in zip(values.tolist(), model.predict(values), strict=True):
            key = tuple(row)
            if len(wanted[rating]) < num_per_rating and key not in seen:
                seen.add(key)
                wanted[rating].append(key)
        if all(len(group) == num_per_rating for group in wanted):
            break
    mixed = np.array([row for group in wanted for row in group], dtype=np.int64)
    return model.rate(mixed[np.random.default_rng(seed).permutation(len(mixed))])


def _best_cuts(scores: Reals, outcomes: Matrix) -> Reals:
    """The two cuts that rate most training applicants right, of 40 × 40 tried."""
    grid = np.quantile(scores, np.linspace(0.1, 0.9, 40))
    pairs = [(low, high) for low in grid for high in grid if low < high]
    hits = [np.mean(np.searchsorted(np.array(p), scores) == outcomes) for p in pairs]
    return np.array(pairs[int(np.argmax(hits))])


def _drop(importance: Importance) -> float:
    return -importance.drop
