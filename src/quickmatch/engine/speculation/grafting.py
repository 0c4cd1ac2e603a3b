"""Lets the suffix index go on where a model's draft ends.

A model is worth its time where nothing like the text was written before; the token or two that it
finds there often lead back to what was. From there on the index knows more, and takes microseconds
where the model takes a pass a token. So a tree that a model drafted gets the index's continuation
of its likeliest path.

Owns where that goes. It knows neither the model nor the index.
"""

from collections.abc import Callable, Sequence

from quickmatch.engine.speculation.tree import Draft, DraftTree


def grafted(
    tree: DraftTree,
    others: Sequence[Draft],
    draft: Callable[[list[int], int], Draft],
    *,
    max_depth: int,
    max_nodes: int,
) -> DraftTree:
    """Return the tree with what follows its likeliest path, whose nodes come last.

    others: what was drafted for the same sequence; a path that one of them holds has been gone on
    from there. draft(token_ids, max_nodes): what may follow the sequence and these tokens.
    max_depth, max_nodes: of the whole.
    """
    path = _likeliest_path(tree)
    token_ids = [tree.token_ids[node] for node in path]
    room = max_nodes - len(tree)
    if not path or len(path) >= max_depth or room < 1:
        return tree
    if any(_holds(other, token_ids) for other in others):
        return tree
    found = DraftTree.of(draft(token_ids, room))
    places: list[int] = []
    depths = found.depths()
    for node, parent in enumerate(found.parents):
        if depths[node] + len(path) > max_depth or (parent >= 0 and places[parent] < 0):
            places.append(-1)
            continue
        above = path[-1] if parent < 0 else places[parent]
        record = found.confidences[node], found.sources[node], found.features[node]
        places.append(tree.add(found.token_ids[node], above, *record))
    return tree


def _likeliest_path(tree: DraftTree) -> list[int]:
    """Return the nodes from the first to a leaf, each the likeliest behind the one before."""
    if tree.is_chain:
        return list(range(len(tree)))
    best: dict[int, int] = {}  # the likeliest child of a node
    for node, parent in enumerate(tree.parents):
        known = best.get(parent)
        if known is None or tree.confidences[node] > tree.confidences[known]:
            best[parent] = node
    path = []
    node = best.get(-1, -1)
    while node >= 0:
        path.append(node)
        node = best.get(node, -1)
    return path


def _holds(draft: Draft, token_ids: list[int]) -> bool:
    """Whether a draft begins with these tokens."""
    tree, node = DraftTree.of(draft), -1
    for token_id in token_ids:
        node = tree.child(node, token_id)
        if node < 0:
            return False
    return True
