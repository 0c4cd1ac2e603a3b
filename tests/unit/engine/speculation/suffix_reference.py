"""What the suffix drafter should say of a short text, computed the slow and obvious way."""

from collections.abc import Sequence

from quickmatch.engine.speculation.tree import DraftTree

MAX_MATCH = 63


def longest_match(text: Sequence[int], end: int, context: Sequence[int]) -> int:
    """How many tokens before text[end] are the last of the context."""
    length = 0
    while (
        length < min(end, len(context), MAX_MATCH)
        and text[end - 1 - length] == context[-1 - length]
    ):
        length += 1
    return length


def chances(
    texts: Sequence[tuple[Sequence[int], int]], context: Sequence[int], path: Sequence[int]
) -> dict[int, tuple[float, int]]:
    """Return each token that may follow the path: its chance, the longest match that speaks for it.

    texts: with how often each was seen. The chance is defined from the shortest match upwards:
    P_m(t) = share * c_m(t) / c_m + (1 - share) * P_(m-1)(t), where c_m counts the places that match
    m tokens or more, and share = c_m / (c_m + 8 / (4 + m) * tokens seen in those places).
    """
    places = [
        (longest_match(text, end, context), text[end + len(path)], times)
        for text, times in texts
        for end in range(1, len(text) - len(path))
        if list(text[end : end + len(path)]) == list(path)
    ]
    places = [place for place in places if place[0] > 0]
    out = {token: 0.0 for _, token, _ in places}
    for m in sorted({length for length, _, _ in places}):
        counts: dict[int, int] = {}
        for length, token, times in places:
            if length >= m:
                counts[token] = counts.get(token, 0) + times
        total = sum(counts.values())
        share = total / (total + 8 / (4 + m + len(path)) * len(counts))
        out = {
            token: share * counts.get(token, 0) / total + (1 - share) * chance
            for token, chance in out.items()
        }
    return {
        token: (
            chance,
            min(MAX_MATCH, len(path) + max(length for length, t, _ in places if t == token)),
        )
        for token, chance in out.items()
    }


def path_chances(tree: DraftTree) -> list[float]:
    """Return the product of confidences down to each node."""
    out: list[float] = []
    for parent, confidence in zip(tree.parents, tree.confidences, strict=True):
        out.append(confidence * (out[parent] if parent >= 0 else 1.0))
    return out


def tokens_on_path(tree: DraftTree, node: int) -> list[int]:
    """Return the tokens from the root's child down to the node."""
    return [tree.token_ids[i] for i in tree.path(node)]
