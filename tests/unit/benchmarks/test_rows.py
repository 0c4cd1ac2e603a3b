"""Bars, ratios and rows."""

import pytest

from benchmarks.rows import against, at_least, at_most, paired_ratio, single


@pytest.mark.parametrize(
    ("bar", "value", "ratio", "holds"),
    [
        (at_least(0.95), 0.95, None, True),
        (at_least(0.95), 0.94, None, False),
        (at_most(5.0), 5.0, None, True),
        (at_most(5.0), 5.1, None, False),
        (at_least(1.0, times_peer=True), 1.0, 1.2, True),
        (at_least(1.0, times_peer=True), 500.0, 0.99, False),
        (at_most(1.3, times_peer=True), 9.0, 1.3, True),
        (at_least(0.95), None, 2.0, None),
        (at_least(1.0, times_peer=True), 500.0, None, None),
    ],
)
def test_bar_judges_its_own_quantity(bar, value, ratio, holds):
    assert bar.holds(value, ratio) is holds


def test_bar_reads_as_a_sentence():
    assert str(at_least(1.2, times_peer=True)) == "≥ 1.2 × peer"
    assert str(at_most(5)) == "≤ 5"


def test_ratio_is_the_median_of_the_pairs_not_the_ratio_of_the_medians():
    # The machine slows down fourfold from the second turn on: each pair still says 2.
    assert paired_ratio([8.0, 2.0, 2.0], [4.0, 1.0, 1.0]) == 2.0
    assert paired_ratio([8.0, 2.0, 10.0], [4.0, 1.0, 1.0]) == 2.0
    assert paired_ratio([], [1.0]) is None


def test_ratio_needs_pairs():
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_single_takes_the_median_and_judges_it():
    row = single("share", [0.9, 0.1, 0.8], "", at_least(0.8))
    assert (row.value, row.bar, row.holds, row.peer) == (0.8, "≥ 0.8", True, None)
    assert single("share", [], "", at_least(0.8)).holds is None


def test_against_makes_a_row_for_every_peer_with_and_without_bar_and_missing():
    rows = against(
        "decode",
        "tokens/s",
        [10.0, 30.0, 20.0],
        {"fast": [20.0, 60.0, 40.0], "slow": [1.0, 2.0, 3.0]},
        bars={"fast": at_least(1.0, times_peer=True), "gone": at_least(1.0, times_peer=True)},
        missing={"gone": "no wheel for this machine"},
    )
    fast, slow, gone = rows
    assert (fast.value, fast.peer_value, fast.ratio, fast.holds) == (20.0, 40.0, 0.5, False)
    assert (slow.bar, slow.holds, slow.peer_value) == (None, None, 2.0)
    assert (gone.peer, gone.peer_value, gone.holds) == ("gone", None, None)
    assert (gone.bar, gone.note) == ("≥ 1 × peer", "no wheel for this machine")


def test_against_nobody_still_reports_ours():
    (row,) = against("decode", "tokens/s", [3.0, 1.0], {})
    assert (row.value, row.peer) == (2.0, None)
