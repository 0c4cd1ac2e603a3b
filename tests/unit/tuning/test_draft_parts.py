"""However long sequences are, what is in memory at once is bounded; short ones notice nothing."""

import random
from itertools import pairwise

import pytest

from quickmatch.tuning.draft_data import TokenSequence
from quickmatch.tuning.draft_parts import RowBudget


def sequence(prompt, output):
    return TokenSequence([1] * prompt, [2] * output)


def num_rows(budget, part):
    sights = [budget.sight(s) for s in part]
    longest = max(s.stop - s.start - 1 for s in sights)
    return len(part) * (longest + budget.num_steps * max(s.num_drafts for s in sights))


def test_a_batch_that_fits_is_one_part():
    budget = RowBudget(16384, num_steps=5)
    batch = [sequence(200, 72)] * 8
    assert budget.parts(batch) == [batch]
    assert budget.sight(batch[0]).start == 0
    assert budget.sight(batch[0]).stop == 272


def test_parts_and_sequences_of_any_length_fit():
    dice = random.Random(0)
    for _ in range(300):
        budget = RowBudget(dice.randint(256, 4096), num_steps=dice.randint(1, 16))
        batch = [
            sequence(dice.randint(1, dice.choice((40, 9000))), dice.randint(2, 900))
            for _ in range(dice.randint(1, 12))
        ]
        parts = budget.parts(batch)
        assert [s for part in parts for s in part] == batch
        for part in parts:
            assert num_rows(budget, part) <= budget.max_rows
        for left, right in pairwise(parts):
            assert num_rows(budget, [*left, right[0]]) > budget.max_rows


@pytest.mark.parametrize(
    ("prompt", "output", "start", "stop"),
    [
        (400, 101, 0, 501),  # 400 + 100 * 6 rows: just fits
        (900, 51, 200, 951),  # of a long prompt the end is seen
        (100, 801, 0, 251),  # of a long answer the beginning is learnt
        (900, 801, 398, 984),  # of both, half the rows are the answer's
        (9000, 2, 8006, 9002),
    ],
)
def test_what_is_learnt_lies_around_where_the_answer_begins(prompt, output, start, stop):
    sight = RowBudget(1000, num_steps=5).sight(sequence(prompt, output))
    assert (sight.start, sight.stop) == (start, stop)
    assert sight.num_prompt == prompt - start
    assert sight.num_drafts == stop - prompt - 1
