import random
from itertools import pairwise

import pytest

from quickmatch.engine.speculation.costs import CostTable, _along, interpolate, points_to_measure
from tests.unit.engine.speculation.simulation import cpu_cost


def measured(*points: tuple[int, int], repeats: int = 3) -> CostTable:
    table = CostTable()
    for num_seqs, num_rows in points:
        for _ in range(repeats):
            table.observe(num_seqs, num_rows, cpu_cost(num_seqs, num_rows))
    return table


def test_an_empty_table_invites_to_try() -> None:
    # Guards: rows that nobody has timed look so dear that no draft is ever tried.
    table = CostTable()
    assert not table.knows_plain
    assert table.step_s(8, 16) < 1.2 * table.step_s(8, 8)
    table.observe(1, 1, 2e-3)
    assert table.knows_plain
    assert table.step_s(1, 9) < 1.1 * 2e-3


def test_the_plain_step_is_an_entry_of_its_own() -> None:
    # Guards: one row interpolated from drafted steps, which take another code path.
    table = measured((1, 1), (1, 2), (1, 8))
    assert table.plain_s(1) == pytest.approx(1.61e-3, rel=0.01)
    assert table.step_s(1, 1) == table.plain_s(1)
    assert table.step_s(1, 2) > 1.15 * table.plain_s(1)


def test_one_slow_step_moves_nothing() -> None:
    # Guards: a plain mean, by which a neighbour's burst switches drafting off.
    table = measured((1, 1), (1, 8), repeats=20)
    before = table.step_s(1, 8)
    table.observe(1, 8, 20 * before)
    assert table.step_s(1, 8) == pytest.approx(before, rel=0.01)


def test_a_slow_first_time_is_soon_forgotten() -> None:
    # Guards: a bucket that was unlucky at its first visit is never visited again.
    table = measured((1, 1), (1, 8), (1, 16))
    table.observe(1, 12, 40e-3)
    assert table.step_s(1, 12) <= table.step_s(1, 16) * 1.01
    for _ in range(2):
        table.observe(1, 12, 2.33e-3)
    assert table.step_s(1, 12) == pytest.approx(2.33e-3, rel=0.03)


def test_a_lasting_change_passes_and_other_entries_stay_comparable() -> None:
    # Guards: a machine that slows down for everything makes the entry in use look bad.
    table = measured((1, 1), (1, 8), repeats=20)
    ratio = table.step_s(1, 8) / table.plain_s(1)
    for _ in range(60):
        table.observe(1, 8, 1.6 * cpu_cost(1, 8))
    assert table.step_s(1, 8) == pytest.approx(1.6 * cpu_cost(1, 8), rel=0.05)
    assert table.step_s(1, 8) / table.plain_s(1) == pytest.approx(ratio, rel=0.2)


def test_a_change_of_one_entry_alone_is_found_by_visiting_both() -> None:
    # Guards: the common factor hides that drafted steps alone have become dearer.
    table = measured((1, 1), (1, 8), repeats=20)
    for step in range(600):
        if step % 60 == 0:
            table.observe(1, 1, cpu_cost(1, 1))
        table.observe(1, 8, 2 * cpu_cost(1, 8))
    ratio = table.step_s(1, 8) / table.plain_s(1)
    assert ratio == pytest.approx(2 * cpu_cost(1, 8) / cpu_cost(1, 1), rel=0.1)


def test_more_rows_never_cost_less_under_noise() -> None:
    # Guards: noise between neighbours, which the choice of a number would chase.
    dice = random.Random(3)
    table = CostTable()
    for _ in range(200):
        rows = dice.randint(2, 40)
        table.observe(1, rows, cpu_cost(1, rows) * dice.uniform(1.0, 1.5))
    costs = [seconds for _, seconds in table.of_step(1, 0.0).stairs]
    slack = 1.05  # what is less known is thought a little cheaper, so that it gets tried
    assert all(b * slack >= a for a, b in pairwise(costs))
    assert costs[-1] > 1.2 * costs[0]


def test_steps_of_the_staircase_stay_steps() -> None:
    # Guards: a straight line over the stair, by which 9 rows cost hardly more than 8.
    table = measured((1, 1), (1, 2), (1, 8), (1, 9), (1, 16), repeats=10)
    assert table.step_s(1, 8) < 1.03 * table.step_s(1, 2)
    assert table.step_s(1, 9) > 1.12 * table.step_s(1, 8)


@pytest.mark.parametrize(("num_seqs", "num_rows"), [(4, 8), (4, 16), (16, 32), (16, 64), (20, 60)])
def test_batch_sizes_between_measured_ones(num_seqs: int, num_rows: int) -> None:
    # Guards: a batch size that was not measured is off by so much that drafts go wrong there.
    table = measured(*points_to_measure(32, 24)[:12])
    assert num_seqs not in (1, 8, 32)
    expected = cpu_cost(num_seqs, num_rows)
    assert table.step_s(num_seqs, num_rows) == pytest.approx(expected, rel=0.15)


def test_points_to_measure_begin_with_what_matters() -> None:
    # Guards: the time at start runs out before the plain step of a single caller is known.
    points = points_to_measure(64, 24)
    assert points[0] == (1, 1)
    assert {(1, 8), (8, 8), (32, 32)} <= set(points[:12])
    assert len(points) == len(set(points))
    assert all(seqs <= rows <= 25 * seqs and rows <= 512 for seqs, rows in points)
    assert all(seqs == 1 for seqs, _ in points_to_measure(1, 4))
    assert (3, 3) in points_to_measure(3, 24)


def test_rows_of_prompts_are_priced_by_steps_that_had_some() -> None:
    # Guards: a step full of prompts reckoned as if it were as quick as a small one.
    table = measured((4, 4), (4, 8), (4, 16))
    for _ in range(10):
        table.observe_mixed(4, 8, 100, cpu_cost(4, 8) + 100 * 30e-6)
    assert table.other_row_s == pytest.approx(30e-6, rel=0.1)


def test_many_places_at_once_are_those_one_by_one() -> None:
    # Guards: the quick way along a line that differs from the plain one, at its ends or at points.
    dice = random.Random(0)
    for _ in range(200):
        points = [(x, dice.random()) for x in sorted(dice.sample(range(40), dice.randint(1, 9)))]
        ats = [46.0, 50.0, *(dice.uniform(-3.0, 45.0) for _ in range(9)), *(x for x, _ in points)]
        ats.sort()
        assert _along(points, ats) == [interpolate(points, at) for at in ats]
