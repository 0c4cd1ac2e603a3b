import pytest

from quickmatch.engine.speculation.merging import merge
from quickmatch.engine.speculation.tree import DraftTree, Source

SUFFIX, HEAD = Source.SUFFIX_LOCAL, Source.HEAD


def same(confidence: float) -> float:
    return confidence


def test_the_same_token_after_the_same_path_is_one_node() -> None:
    # Guards: the same token verified twice, in two rows.
    suffix = DraftTree.chain([5, 6, 7], [0.9, 0.9, 0.9], SUFFIX, 4)
    head = DraftTree.chain([5, 6, 9], [0.5, 0.95, 0.5], HEAD)
    one = merge([suffix, head], [[0.9, 0.81, 0.73], [0.5, 0.48, 0.24]], same)
    assert one.tree.token_ids == [5, 6, 7, 9]
    assert one.tree.parents == [-1, 0, 1, 1]
    assert [(t.node, t.source) for t in one.twins] == [(0, HEAD), (1, SUFFIX)]
    assert one.tree.sources == [SUFFIX, HEAD, SUFFIX, HEAD]  # who is believed more
    assert one.tree.children()[1] == {7: 2, 9: 3}


def test_agreement_is_worth_more_than_either() -> None:
    # Guards: two drafters that say the same believed no more than one.
    suffix = DraftTree.chain([5], [0.6], SUFFIX, 4)
    head = DraftTree.chain([5], [0.5], HEAD)
    one = merge([suffix, head], [[0.6], [0.5]], same)
    assert one.probabilities[0] == pytest.approx(0.8)
    assert one.twins[0].together == pytest.approx(0.8)
    assert merge([suffix, head], [[0.6], [0.5]], lambda _: 0.1).probabilities[0] == 0.6


def test_siblings_share_one_probability() -> None:
    # Guards: two drafters that contradict each other both believed.
    suffix = DraftTree.chain([5, 6], [0.9, 0.9], SUFFIX, 4)
    head = DraftTree.chain([8, 9], [0.7, 0.9], HEAD)
    one = merge([suffix, head], [[0.9, 0.8], [0.7, 0.63]], same)
    assert one.probabilities[0] == 0.9
    assert one.probabilities[2] == pytest.approx(0.1)
    assert one.probabilities[3] == pytest.approx(0.09)


def test_a_first_token_is_found_whoever_proposed_it() -> None:
    # Guards: a head on trial that gets no credit where the suffix index said the same.
    suffix = DraftTree.chain([5], [0.6], SUFFIX, 4)
    head = DraftTree.chain([5, 6], [0.5, 0.5], HEAD)
    one = merge([suffix, head], [[0.6], [0.5, 0.3]], same)
    assert one.begins_with(5)
    assert one.begins_with(5, of_model=True)
    assert not one.begins_with(6)
    assert not merge([suffix], [[0.6]], same).begins_with(5, of_model=True)
