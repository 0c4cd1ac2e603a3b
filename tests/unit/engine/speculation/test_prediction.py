"""The caller's guess: followed while it holds, found again after a difference."""

from quickmatch.engine.speculation.prediction import PredictionDrafter
from quickmatch.engine.speculation.tree import Source

GUESS = [*range(100, 140)]


def test_it_starts_with_the_guess_and_follows_it() -> None:
    drafter = PredictionDrafter(GUESS)
    assert drafter.draft(4).token_ids == GUESS[:4]
    drafter.extend(GUESS[:7])
    tree = drafter.draft(5)
    assert tree.token_ids == GUESS[7:12]
    assert tree.is_chain
    assert set(tree.sources) == {Source.PREDICTION}


def test_trust_grows_with_what_agreed() -> None:
    drafter = PredictionDrafter(GUESS)
    first = drafter.draft(1)
    drafter.extend(GUESS[:20])
    later = drafter.draft(1)
    assert later.confidences > first.confidences
    assert later.features > first.features


def test_a_changed_token_is_skipped() -> None:
    drafter = PredictionDrafter(GUESS)
    drafter.extend([*GUESS[:10], 7])
    assert len(drafter.draft(4)) == 0
    drafter.extend(GUESS[11:14])
    assert drafter.draft(4).token_ids == GUESS[14:18]


def test_inserted_and_deleted_lines_are_passed() -> None:
    drafter = PredictionDrafter(GUESS)
    drafter.extend([*GUESS[:5], 1, 2, 3, 4, *GUESS[5:8]])
    assert drafter.draft(2).token_ids == GUESS[8:10]
    drafter.extend(GUESS[20:23])  # 8 to 19 are left out
    assert drafter.draft(2).token_ids == GUESS[23:25]


def test_of_several_places_the_nearest_ahead_is_taken() -> None:
    guess = [1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3, 70]
    drafter = PredictionDrafter(guess)
    drafter.extend([1, 2, 3, 50, 9, 1, 2, 3])
    assert drafter.draft(1).token_ids == [60]


def test_the_end_of_the_guess() -> None:
    drafter = PredictionDrafter(GUESS)
    drafter.extend(GUESS)
    assert len(drafter.draft(4)) == 0
    drafter.extend([1, 2])
    assert len(drafter.draft(4)) == 0
    assert len(PredictionDrafter([]).draft(4)) == 0


def test_what_the_guess_foretold_is_counted() -> None:
    drafter = PredictionDrafter(GUESS)
    assert drafter.extend(GUESS[:3]) == 3
    assert drafter.extend([-1]) == 0
