"""Sums of what was verified."""

from quickmatch.engine.speculation.figures import Figures
from quickmatch.engine.speculation.tree import DraftTree, Source


def test_accepted_tokens_are_counted_by_their_place_in_the_draft() -> None:
    figures = Figures()
    assert figures.accepted_by_position == []
    draft = DraftTree.chain([1, 2, 3, 4], [0.9] * 4, Source.HEAD)
    for num_accepted in (0, 3, 1, 3, 0):
        figures.add_verified(draft, range(num_accepted))
    assert figures.accepted_by_position == [3, 2, 2]
    assert sum(figures.accepted_by_position) == figures.num_accepted
