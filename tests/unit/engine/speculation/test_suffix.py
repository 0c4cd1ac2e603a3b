"""The suffix drafter, with the native and with the plain index: what it drafts, and from what."""

import random
import sys
from collections.abc import Callable
from functools import partial

import pytest

from quickmatch.engine.speculation import suffix, suffix_index
from quickmatch.engine.speculation.suffix import SuffixDrafter
from quickmatch.engine.speculation.tree import DraftTree, Source
from tests.unit.engine.speculation.suffix_reference import (
    chances,
    path_chances,
    tokens_on_path,
)

Make = Callable[..., SuffixDrafter]


@pytest.fixture(params=["native", "plain"])
def make(request: pytest.FixtureRequest) -> Make:
    index_type: Callable[..., suffix.SuffixIndex] = suffix_index.SuffixIndex
    if request.param == "native":
        index_type = pytest.importorskip("quickmatch._native").SuffixIndex
    return partial(
        SuffixDrafter, max_tokens=1000, max_depth=8, min_confidence=0.1, index_type=index_type
    )


def drafted(drafter: SuffixDrafter, context: list[int], scope: str = "a") -> list[int]:
    """The tokens drafted after a prompt."""
    drafter.start(-1, scope, context)
    tree = drafter.draft(-1, 16)
    drafter.finish(-1, remember=False)
    return tree.token_ids


@pytest.mark.parametrize("seed", range(12))
def test_nodes_are_those_and_as_likely_as_the_reference_says(make: Make, seed: int) -> None:
    rng = random.Random(seed)
    text = [rng.randrange(3) for _ in range(rng.randrange(2, 30))]
    floor = rng.choice([0.02, 0.1, 0.3])
    drafter = make(min_confidence=floor, max_depth=5)
    drafter.start(1, "a", text)
    tree = DraftTree.of(drafter.draft(1, 1000))
    likely = path_chances(tree)
    assert likely == sorted(likely, reverse=True)
    found = {tuple(tokens_on_path(tree, node)) for node in range(len(tree))}
    for node in range(-1, len(tree)):
        path = tokens_on_path(tree, node)
        above = likely[node] if node >= 0 else 1.0
        for token, (chance, longest) in chances([(text, 1)], text, path).items():
            is_kept = above * chance >= floor and len(path) < 5
            assert ((*path, token) in found) == is_kept
            if is_kept:
                child = tree.children()[node][token]
                assert tree.confidences[child] == pytest.approx(chance)
                assert tree.features[child] == longest
    assert set(tree.sources) <= {Source.SUFFIX_LOCAL}


def test_tokens_ahead_are_gone_on_from_as_if_they_had_come(make: Make) -> None:
    # Guards: a draft behind a model's tokens that begins where the text ends.
    drafter = make()
    for end in (70, 80):
        drafter.remember("a", [*range(40), *range(end, end + 5)])
    for text in ([], [200, 201], [37, 38], list(range(30))):
        for ahead in ([39], [30, 31], list(range(30, 40)), list(range(5, 40)), [300]):
            drafter.start(1, "a", text)
            found = DraftTree.of(drafter.draft(1, 16, ahead))
            drafter.extend(1, ahead)
            assert found == DraftTree.of(drafter.draft(1, 16))
            assert (len(found) == 0) == (ahead == [300])
            drafter.finish(1, remember=False)


@pytest.mark.parametrize("seed", range(5))
def test_of_documents_that_come_and_go_exactly_those_left_speak(seed: int) -> None:
    """With the plain index, whose documents can be read; the native one is held equal to it."""
    rng = random.Random(seed)
    index = suffix_index.SuffixIndex(max_tokens=60, max_depth=1, min_confidence=1e-6)
    for step in range(300):
        scope = rng.choice("ab")
        index.remember(scope, [rng.randrange(5) for _ in range(rng.randrange(2, 20))])
        prompt = [rng.randrange(5) for _ in range(rng.randrange(1, 6))]
        index.start(step, scope, prompt)
        tree = index.draft(step, 100, ())
        past = index._past
        left = [
            (past.tokens[document.owner.begin : document.owner.end], document.owner.times)
            for document in past._documents
            if document.scope is index._live[step].scope
        ]
        right = chances([(prompt, 1)], prompt, [])
        for token, said in chances(left, prompt, []).items():
            right[token] = max(right.get(token, said), said)
        index.finish(step, False)
        said_of = zip(tree.confidences, tree.features, strict=True)
        assert dict(zip(tree.token_ids, said_of, strict=True)) == {
            token: (pytest.approx(chance), longest) for token, (chance, longest) in right.items()
        }


def test_past_outputs_count_as_often_as_they_were_seen(make: Make) -> None:
    drafter = make(min_confidence=0.01, max_depth=1)
    for text, times in (([5, 1, 2, 3], 3), ([6, 1, 2, 4], 1), ([7, 7], 9)):
        for _ in range(times):
            drafter.remember("a", text)
    assert drafter.num_tokens == 10
    drafter.start(1, "a", [5, 1, 2])
    tree = drafter.draft(1, 9)
    right = chances([([5, 1, 2, 3], 3), ([6, 1, 2, 4], 1)], [5, 1, 2], [])
    assert dict(zip(tree.token_ids, tree.confidences, strict=True)) == pytest.approx(
        {token: chance for token, (chance, _) in right.items()}
    )
    assert tree.features == [3, 2]
    assert set(tree.sources) == {Source.SUFFIX_GLOBAL}


def test_both_sources_make_one_tree(make: Make) -> None:
    drafter = make()
    for _ in range(5):
        drafter.remember("a", [1, 2, 3, 40])
    drafter.start(1, "a", [1, 2, 3, 50, 9, 2, 3, 50, 1, 2])
    tree = DraftTree.of(drafter.draft(1, 16))
    children = tree.children()
    three = children[-1][3]
    assert list(children[-1]) == [3]
    after = {tree.token_ids[node]: tree.sources[node] for node in children[three].values()}
    assert after == {40: Source.SUFFIX_GLOBAL, 50: Source.SUFFIX_LOCAL}
    alone = make()
    alone.start(1, "a", [1, 2, 3, 50, 9, 2, 3, 50, 1, 2])
    local = DraftTree.of(alone.draft(1, 16))
    assert tree.confidences[three] > local.confidences[local.children()[-1][3]]


def test_first_tokens_of_an_output_are_drafted_from_how_prompts_end(make: Make) -> None:
    drafter = make()
    template = [90, 91, 92]
    for i in range(4):
        drafter.start(i, "a", [i, i + 10, i + 20, *template])
        drafter.extend(i, [70, 71])
        drafter.extend(i, [72, 99])
        drafter.finish(i)
    assert drafted(drafter, [55, 56, *template]) == [70, 71, 72, 99]


def test_an_output_not_to_be_remembered_is_not(make: Make) -> None:
    drafter = make()
    drafter.start(1, "a", [1, 2])
    drafter.extend(1, [3, 4, 5])
    drafter.finish(1, remember=False)
    assert drafter.num_tokens == 0
    assert drafted(drafter, [1, 2]) == []


def test_scopes_see_only_their_own(make: Make) -> None:
    """Random walk in a small ring, with more n-grams than buckets: even tokens are a's, odd b's."""
    rng = random.Random(0)
    drafter = make(max_tokens=300, min_confidence=0.001)
    num_nodes = {0: 0, 1: 0}
    for _ in range(600):
        parity = rng.randrange(2)
        scope = "ab"[parity]
        text = [2 * rng.randrange(20) + parity for _ in range(rng.randrange(40))]
        drafter.remember(scope, text)
        # The context holds both, so only whose outputs may be seen decides.
        mixed = [token ^ rng.randrange(2) for token in text]
        own = set(mixed)
        for asked in (0, 1):
            tokens = drafted(drafter, mixed, "ab"[asked])
            assert all(token % 2 == asked or token in own for token in tokens)
            num_nodes[asked] += sum(token not in own for token in tokens)
    assert min(num_nodes.values()) > 100


def test_the_oldest_go_first_but_those_drawn_from_stay(make: Make) -> None:
    drafter = make(max_tokens=100, min_confidence=0.001)
    documents = [[100 * i + j for j in range(10)] for i in range(1, 30)]
    for document in documents[:10]:
        drafter.remember("a", document)
    assert drafter.num_tokens == 100
    assert drafted(drafter, documents[0][:5]) == documents[0][5:]
    for document in documents[10:15]:
        drafter.remember("a", document)
        assert drafter.num_tokens <= 100
    kept = [i for i in range(15) if drafted(drafter, documents[i][:3]) == documents[i][3:]]
    assert kept == [0, *range(6, 15)]
    for document in documents[15:]:
        drafter.remember("a", document)
    assert drafted(drafter, documents[0][:3]) == []  # a second chance, not a third


def test_a_document_larger_than_the_index_keeps_its_end(make: Make) -> None:
    drafter = make(max_tokens=50)
    drafter.remember("a", list(range(200)))
    assert drafter.num_tokens == 50
    assert drafted(drafter, [160, 161])[:3] == [162, 163, 164]
    assert drafted(drafter, [100, 101]) == []


@pytest.mark.parametrize("prompt", [[], [1], [2**31]])
def test_too_little_to_draft_from(make: Make, prompt: list[int]) -> None:
    drafter = make()
    drafter.start(1, "a", prompt)
    assert len(drafter.draft(1, 8)) == 0
    drafter.extend(1, [])
    drafter.finish(1)
    assert drafter.num_tokens == 0


def test_repeated_tokens_and_large_ids(make: Make) -> None:
    drafter = make()
    drafter.start(1, "a", [2**31] * 3000)  # grows over several tables
    tree = drafter.draft(1, 16)
    assert tree.token_ids == [2**31] * 8  # as deep as max_depth
    assert tree.features == [63] * 8
    drafter.extend(1, [2**31 - 1] * 700)
    assert drafter.draft(1, 16).token_ids[:2] == [2**31 - 1] * 2
    assert len(drafter.draft(1, 0)) == len(drafter.draft(1, -1)) == 0


def test_sequences_that_are_not_live(make: Make) -> None:
    drafter = make()
    drafter.start(1, "a", [1])
    with pytest.raises(ValueError, match="sequence 1 is live already"):
        drafter.start(1, "a", [1])
    drafter.finish(1)
    for work in (drafter.finish, partial(drafter.draft, max_nodes=4)):
        with pytest.raises(KeyError, match="sequence 1 is not live"):
            work(1)
    with pytest.raises(KeyError, match="sequence 2 is not live"):
        drafter.extend(2, [1])


def test_says_once_that_the_extension_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "quickmatch._native", None)
    suffix.best_index_type.cache_clear()
    for _ in range(2):
        drafter = SuffixDrafter(max_tokens=10, max_depth=4, min_confidence=0.1)
    suffix.best_index_type.cache_clear()
    assert isinstance(drafter._index, suffix_index.SuffixIndex)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
