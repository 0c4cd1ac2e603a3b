"""The suffix index's continuation of a model's tree."""

from quickmatch.engine.speculation.grafting import grafted
from quickmatch.engine.speculation.tree import DraftTree, Source


def model_tree(*nodes: tuple[int, int, float]) -> DraftTree:
    tree = DraftTree()
    for token_id, parent, confidence in nodes:
        tree.add(token_id, parent, confidence, Source.HEAD)
    return tree


class Index:
    """Knows one text; drafts what follows in it, with a second guess behind the first token."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def draft(self, ahead: list[int], max_nodes: int) -> DraftTree:
        self.asked.append(ahead)
        tree = DraftTree()
        for token_id, parent in ((50, -1), (51, 0), (60, 0), (52, 1))[:max_nodes]:
            tree.add(token_id, parent, 0.8, Source.SUFFIX_GLOBAL, 3)
        return tree


def test_the_likeliest_path_is_gone_on_from() -> None:
    # Guards: a graft on the first path, or on one that is likely only at its end.
    index = Index()
    tree = model_tree((1, -1, 0.3), (2, -1, 0.6), (3, 0, 0.9), (4, 1, 0.4), (5, 1, 0.5))
    out = grafted(tree, [], index.draft, max_depth=9, max_nodes=24)
    assert index.asked == [[2, 5]]
    assert out.token_ids == [1, 2, 3, 4, 5, 50, 51, 60, 52]
    assert out.parents == [-1, -1, 0, 1, 1, 4, 5, 5, 6]
    assert out.sources[5:] == [Source.SUFFIX_GLOBAL] * 4
    assert out.confidences[5:] == [0.8] * 4
    assert out.features[5:] == [3] * 4


def test_the_whole_stays_as_deep_and_as_large_as_is_allowed() -> None:
    # Guards: KV slots and tables that are made for no more.
    chain = [(1, -1, 0.9), (2, 0, 0.9)]
    shallow = grafted(model_tree(*chain), [], Index().draft, max_depth=4, max_nodes=24)
    assert max(shallow.depths()) == 4
    assert shallow.token_ids == [1, 2, 50, 51, 60]
    small = grafted(model_tree(*chain), [], Index().draft, max_depth=9, max_nodes=3)
    assert small.token_ids == [1, 2, 50]
    for full in ({"max_depth": 2, "max_nodes": 24}, {"max_depth": 9, "max_nodes": 2}):
        index = Index()
        assert grafted(model_tree(*chain), [], index.draft, **full).token_ids == [1, 2]
        assert not index.asked


def test_what_the_index_has_drafted_already_is_not_asked_again() -> None:
    # Guards: the same tokens verified twice.
    index = Index()
    drafted = DraftTree.chain([1, 2, 7], [0.9] * 3, Source.SUFFIX_LOCAL)
    tree = grafted(
        model_tree((1, -1, 0.9), (2, 0, 0.9)), [drafted], index.draft, max_depth=9, max_nodes=24
    )
    assert tree.token_ids == [1, 2]
    assert not index.asked
    grafted(model_tree((1, -1, 0.9), (3, 0, 0.9)), [drafted], index.draft, max_depth=9, max_nodes=9)
    assert index.asked == [[1, 3]]


def test_nothing_is_put_behind_no_tree() -> None:
    index = Index()
    assert len(grafted(DraftTree(), [], index.draft, max_depth=9, max_nodes=24)) == 0
    assert not index.asked
