"""The rating model: better than chance, monotone, and its factors add up to what it does."""

from collections import Counter

import numpy as np
import pytest

from examples.credit_cards.applicants import Population, simulate
from examples.credit_cards.fields import FIELDS, RATINGS
from examples.credit_cards.rating import NUM_FACTORS, RatingModel, stratified


@pytest.fixture(scope="module")
def model() -> RatingModel:
    return RatingModel(simulate(500, seed=1), seed=1)


def test_rates_held_out_applicants_far_better_than_chance(model: RatingModel) -> None:
    assert model.num_held_out == 375
    assert 0.65 < model.accuracy < 0.95  # not perfect: part of the outcome is luck


def test_importances_name_every_field_and_are_sorted(model: RatingModel) -> None:
    drops = [importance.drop for importance in model.importances]
    assert {i.field.key for i in model.importances} == {field.key for field in FIELDS}
    assert drops == sorted(drops, reverse=True)
    assert drops[0] > 0.02


@pytest.mark.parametrize("column", range(len(FIELDS)))
def test_more_of_a_bad_thing_never_raises_the_score(model: RatingModel, column: int) -> None:
    values = simulate(40, seed=9).values
    more = values.copy()
    more[:, column] += max(1, int(values[:, column].max() // 4))
    gain = (model.score(more) - model.score(values)) * FIELDS[column].trend
    assert gain.min() >= -1e-9


def test_a_contribution_is_what_replacing_the_field_changes(model: RatingModel) -> None:
    values = simulate(20, seed=9).values
    contributions = model.contributions(values)
    worst, best = values.copy(), values.copy()
    worst[:, 4], best[:, 4] = 99, 1  # the debt ratio
    assert (model.contributions(worst)[:, 4] <= 0).all()
    assert (model.contributions(best)[:, 4] >= 0).all()
    assert contributions.shape == values.shape


def test_factors_are_the_largest_contributions_first(model: RatingModel) -> None:
    values = simulate(20, seed=9).values
    contributions = model.contributions(values)
    for row, applicant, gains in zip(values, model.rate(values), contributions, strict=True):
        sizes = [abs(factor.contribution) for factor in applicant.factors]
        assert len(sizes) == NUM_FACTORS
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] == np.abs(gains).max()
        for factor in applicant.factors:
            assert factor.value == row[FIELDS.index(factor.field)]
            assert factor.helped == (factor.contribution >= 0)


def test_stratified_has_as_many_of_each_rating_and_no_twins(model: RatingModel) -> None:
    applicants = stratified(model, 30, seed=2)
    assert Counter(a.rating for a in applicants) == dict.fromkeys(RATINGS, 30)
    assert len({a.values for a in applicants}) == 90
    assert applicants == stratified(model, 30, seed=2)
    assert [a.rating for a in applicants[:30]] != ["poor"] * 30


def test_refuses_a_population_that_lacks_an_outcome() -> None:
    all_good = Population(np.ones((30, len(FIELDS)), dtype=np.int64), np.full(30, 2))
    with pytest.raises(ValueError, match="no applicant turned out poor; simulate more"):
        RatingModel(all_good, seed=1)
