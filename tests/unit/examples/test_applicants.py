"""The simulator: balanced, seeded, plausible, and not to be predicted perfectly."""

import numpy as np
import pytest

from examples.credit_cards.applicants import draw, simulate, stream
from examples.credit_cards.fields import BY_LABEL, FIELDS, RATINGS, Unit


def test_each_outcome_is_as_frequent() -> None:
    population = simulate(120, seed=3)
    assert len(population) == 360
    assert np.bincount(population.outcomes).tolist() == [120] * len(RATINGS)


def test_outcomes_are_mixed_and_not_in_blocks() -> None:
    outcomes = simulate(200, seed=3).outcomes
    assert (np.diff(outcomes) != 0).mean() > 0.5


def test_same_seed_same_applicants_other_seed_others() -> None:
    first, again, other = simulate(50, seed=3), simulate(50, seed=3), simulate(50, seed=4)
    assert np.array_equal(first.values, again.values)
    assert not np.array_equal(first.values, other.values)
    assert np.array_equal(next(stream(5)), next(stream(5)))


def test_values_are_as_on_a_form() -> None:
    values, _ = draw(5000, np.random.default_rng(1))
    columns = {field.key: values[:, i] for i, field in enumerate(FIELDS)}
    assert columns["credit_score"].min() >= 300
    assert columns["credit_score"].max() <= 850
    assert (columns["income"] % 1000 == 0).all()
    assert (columns["limit"] % 500 == 0).all()
    for field in FIELDS:
        if field.unit is Unit.PERCENT:
            assert columns[field.key].min() >= 1
            assert columns[field.key].max() <= 99
        assert columns[field.key].min() >= 0


def test_fields_move_together_as_in_life() -> None:
    values, outcomes = draw(8000, np.random.default_rng(1))
    columns = {field.key: values[:, i].astype(float) for i, field in enumerate(FIELDS)}
    assert np.corrcoef(columns["late_payments"], columns["credit_score"])[0, 1] < -0.3
    assert np.corrcoef(columns["utilisation"], columns["late_payments"])[0, 1] > 0.2
    columns["limit"] /= columns["income"]  # who earns more asks for more; the share counts
    for field in FIELDS:  # each field tells something of the outcome, none tells all
        told = np.corrcoef(columns[field.key], outcomes)[0, 1] * field.trend
        assert 0.0 < told < 0.75, field.label


def test_refuses_an_empty_population() -> None:
    with pytest.raises(ValueError, match="num_per_outcome is 0; it must be at least 1"):
        simulate(0, seed=1)


@pytest.mark.parametrize(
    ("label", "value", "written"),
    [
        ("credit score", 712, "712"),
        ("yearly income", 54_000, "$54,000"),
        ("card utilisation", 7, "7%"),
        ("account age", 1, "1 year"),
        ("job tenure", 0, "0 years"),
    ],
)
def test_a_figure_reads_back(label: str, value: int, written: str) -> None:
    field = BY_LABEL[label]
    assert field.figure(value) == written
    assert field.read(written) == value


def test_a_figure_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="card utilisation is 'high'; write it like '12%'"):
        BY_LABEL["card utilisation"].read("high")
