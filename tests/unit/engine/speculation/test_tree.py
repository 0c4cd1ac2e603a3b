"""The shape of drafts."""

from quickmatch.engine.speculation.tree import DraftTree, Source


def bushy() -> DraftTree:
    """Node 0 has children 1 and 3, node 1 a child 2, the root a second child 4."""
    tree = DraftTree()
    for token_id, parent in ((10, -1), (11, 0), (12, 1), (13, 0), (14, -1)):
        tree.add(token_id, parent, 0.5, Source.HEAD, token_id % 10)
    return tree


def test_shape() -> None:
    tree = bushy()
    assert tree.depths() == [1, 2, 3, 2, 1]
    assert tree.children() == {-1: {10: 0, 14: 4}, 0: {11: 1, 13: 3}, 1: {12: 2}}
    assert [tree.child(*of) for of in ((-1, 14), (0, 13), (1, 12), (0, 14), (4, 10))] == [
        4, 3, 2, -1, -1,
    ]  # fmt: skip
    assert tree.path(2) == [0, 1, 2]
    assert not tree.is_chain


def test_a_chain() -> None:
    tree = DraftTree.chain([5, 6, 7], [0.9, 0.8, 0.7], Source.PREDICTION, 3)
    assert tree.is_chain
    assert tree.parents == [-1, 0, 1]
    assert tree.features == [3, 3, 3]


def test_kept_nodes_are_a_tree_again() -> None:
    kept = bushy().keep([4, 0, 3])
    assert kept.token_ids == [14, 10, 13]
    assert kept.parents == [-1, -1, 1]
    assert kept.features == [4, 0, 3]
