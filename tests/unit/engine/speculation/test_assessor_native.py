"""The native assessor of drafts: equal to the plain one, whatever it is asked."""

import random
from collections.abc import Iterable

import pytest

from quickmatch.engine.speculation import plain_assessor
from quickmatch.engine.speculation.costs import StepCosts
from quickmatch.engine.speculation.tree import Draft, DraftTree, Source, TreeColumns

native = pytest.importorskip("quickmatch._native")

CHEAP = (Source.PREDICTION, Source.SUFFIX_LOCAL, Source.SUFFIX_GLOBAL)


class Twins:
    """A native and a plain assessor that are asked the same."""

    def __init__(self, rng: random.Random) -> None:
        settings = {"max_depth": rng.choice([2, 8, 16]), "floor": rng.choice([0.0, 0.05, 0.5])}
        self.native = native.Assessor(**settings)
        self.plain = plain_assessor.Assessor(**settings)

    def same(self, name: str, *args: object) -> object:
        """Return what both answer, equal to the last bit."""
        answer = getattr(self.plain, name)(*args)
        assert getattr(self.native, name)(*args) == answer, name
        return answer

    def check(self) -> None:
        for name in ("num_sequences", "drifts"):
            assert getattr(self.native, name) == getattr(self.plain, name), name
        for width in (1, 2, 4):
            assert self.native.promises.look(width) == self.plain.promises.look(width)
        assert self.native.promises.behind == self.plain.promises.behind


def draft(rng: random.Random, sources: Iterable[Source]) -> DraftTree:
    """A chain or a tree of a few tokens, so that drafts of one sequence often agree."""
    choice, tree = list(sources), DraftTree()
    source, feature = rng.choice(choice), rng.randrange(65)
    is_chain = rng.random() < 0.5
    taken: set[tuple[int, int]] = set()
    for node in range(rng.choice([0, 1, 3, 8, 24])):
        parent = node - 1 if is_chain else rng.randrange(-1, node)
        token_id = rng.randrange(4)
        if (parent, token_id) in taken:
            token_id = 100 + node
        taken.add((parent, token_id))
        if not is_chain and source in CHEAP:
            source, feature = rng.choice(choice), rng.randrange(65)
        confidence = rng.choice([0.0, 1.0, 1.0 + 1e-15, rng.random(), 0.9])
        tree.add(token_id, parent, confidence, source, feature)
    return tree


def gone_on_from(rng: random.Random, tree: DraftTree) -> DraftTree:
    """Return it with what the suffix index drafts behind one of its nodes, or as it is."""
    if len(tree) and rng.random() < 0.5:
        node = rng.randrange(len(tree))
        for i in range(rng.randrange(4)):
            node = tree.add(50 + i, node, rng.random(), Source.SUFFIX_GLOBAL, rng.randrange(65))
    return tree


def step_costs(rng: random.Random, num_seqs: int) -> StepCosts:
    plain_s = rng.uniform(1e-3, 3e-3) * num_seqs**0.5
    seconds, stairs = plain_s, []
    for num_rows in range(num_seqs + 1, 40 * num_seqs, rng.choice([1, 3, 8])):
        seconds += rng.choice([0.0, 0.0, 0.02, 0.3]) * plain_s
        stairs.append((num_rows, seconds))
    return StepCosts(stairs, rng.uniform(0.8, 1.2), plain_s, rng.choice([0.0, 1e-3]))


def told(rng: random.Random, columns: TreeColumns | None, chance: float) -> list[int]:
    """What the target says: a token of a drafted path with that chance, as long as it lasts."""
    out: list[int] = []
    if columns is not None:
        token_ids, parents = columns[0], columns[1]
        node = -1
        while rng.random() < chance:
            below = [i for i, parent in enumerate(parents) if parent == node]
            if not below:
                break
            node = rng.choice(below)
            out.append(token_ids[node])
    return [*out, rng.randrange(4)]


@pytest.mark.parametrize("seed", range(12))
def test_native_and_plain_agree_to_the_last_bit(seed: int) -> None:
    # Guards: decisions that depend on whether the extension could be built.
    rng = random.Random(seed)
    twins = Twins(rng)
    now, next_id = 0, 3
    ids = [0, 1, 2]
    for step in range(400):
        now += rng.choice([1, 1, 1, 30])
        move = rng.random()
        if move < 0.05:
            ids.append(next_id)
            next_id += 1
        elif move < 0.1 and len(ids) > 1:
            twins.same("forget", ids.pop(rng.randrange(len(ids))))
        elif move < 0.12:
            twins.same("renew", rng.choice(list(Source)))
        elif move < 0.14:
            name = rng.choice(["soften", "renew"])
            for assessor in (twins.native, twins.plain):
                getattr(assessor.promises, name)()
        for sequence_id in ids:
            twins.same("ask", sequence_id, now, rng.choice([1, 32]))
        width = rng.choice([1, 2, 4])
        trees = [[draft(rng, CHEAP) for _ in range(rng.randrange(3))] for _ in ids]
        twins.same("gather", ids, trees, now, width, 0, None)
        costs = step_costs(rng, len(ids))
        twins.same("outlook", costs)
        if rng.random() < 0.5:
            planned = tuple(rng.sample(ids, rng.randint(1, len(ids))))
            for sequence_id, drafts in zip(ids, trees, strict=True):
                if sequence_id in planned:
                    drafts.append(gone_on_from(rng, draft(rng, [Source.HEAD])))
            twins.same("gather", ids, trees, now, width, rng.choice([1, 4, 12]), planned)
        twins.same("gain", 0)
        max_rows, max_nodes = rng.choice([-1, 0, 7, 400]), rng.choice([1, 5, 24])
        least_gain = rng.choice([0.01, 0.5])
        if rng.random() < 0.8:
            answer = twins.same("choose", costs, 1.03, max_rows, max_nodes, least_gain)
            chosen: list[TreeColumns | None] = answer[1]  # type: ignore[index]
        else:
            chosen = twins.same("choose_all", max_rows, max_nodes)  # type: ignore[assignment]
        for sequence_id, columns in zip(ids, chosen, strict=True):
            drafted = columns
            if columns is None and rng.random() < 0.5:
                drafted = next(
                    ((t.token_ids, t.parents, [], [], []) for t in trees[0] if len(t)), None
                )
            scope = rng.choice("abc")
            chance = 0.9 if step % 200 < 100 else 0.1  # the traffic drifts
            token_ids = told(rng, drafted, chance) if rng.random() < 0.98 else []
            is_learning = rng.random() < 0.9
            twins.same("judge", sequence_id, token_ids, scope, is_learning, columns is None)
        twins.same("refresh")
        twins.check()


def test_a_drift_of_the_traffic_is_counted_alike() -> None:
    # Guards: heads that are trained anew only where the extension was built, or only elsewhere.
    twins = Twins(random.Random(0))
    for step in range(600):
        tree = DraftTree.chain(range(4), [0.9] * 4, Source.HEAD)
        twins.same("gather", [step // 20], [[tree]], step, 1, 4, None)
        token_ids = [0, 1, 2, 3, 9] if step < 300 else [9]
        twins.same("judge", step // 20, token_ids, "a", True, False)
        twins.same("refresh")
        if step % 20 == 19:
            twins.same("forget", step // 20)
        twins.check()
    assert twins.plain.drifts == {"a": 1}


def test_drafts_of_the_native_index_cross_over_as_they_are() -> None:
    rng = random.Random(3)
    index = native.SuffixIndex(max_tokens=5000, max_depth=8, min_confidence=0.05)
    as_is, by_lists = (native.Assessor(max_depth=8, floor=0.05) for _ in range(2))
    plain = plain_assessor.Assessor(max_depth=8, floor=0.05)
    texts = [[rng.randrange(4) for _ in range(40)] for _ in range(8)]
    for text in texts:
        index.remember("a", text)
    num_nodes = 0
    for step in range(200):
        index.start(step, "a", rng.choice(texts)[: rng.randrange(30)])
        draft = index.draft(step, rng.choice([0, 1, 24]), [])
        num_nodes += len(draft)
        trees: list[list[Draft]] = [[draft], []]
        as_is.gather([1, 2], trees, step, 1, 0, None)
        by_lists.gather([1, 2], [[DraftTree.of(draft)], []], step, 1, 0, None)
        plain.gather([1, 2], trees, step, 1, 0, None)
        chosen = by_lists.choose_all(16, 8)
        assert as_is.choose_all(16, 8) == chosen == plain.choose_all(16, 8)
        token_id = rng.randrange(4)
        for assessor in (as_is, by_lists, plain):
            assessor.judge(1, [token_id], "a", True, False)
    assert num_nodes > 500
    deep = native.SuffixIndex(max_tokens=2000, max_depth=1500, min_confidence=1e-300)
    deep.remember("a", [*range(1200)])
    deep.start(1, "a", [0, 1, 2])
    with pytest.raises(IndexError, match="deeper"):
        as_is.gather([1], [[deep.draft(1, 1500, [])]], 0, 1, 0, None)


def test_what_is_no_draft_is_refused() -> None:
    # Guards: reading beyond the tables, in C++, for a drafter's mistake.
    def tree(**wrong: float) -> DraftTree:
        good = {"token_id": 5, "parent": -1, "confidence": 0.5, "source": 1, "feature": 3}
        out = DraftTree()
        out.add(**(good | wrong))  # type: ignore[arg-type]
        return out

    assessor = native.Assessor(max_depth=4, floor=0.1)
    wrong = [{"parent": 0}, {"parent": -2}, {"confidence": 1.5}, {"confidence": -0.1}]
    wrong += [{"source": 6}, {"source": -1}, {"feature": 65}, {"feature": -1}]
    for one in wrong:
        with pytest.raises(IndexError):
            assessor.gather([1], [[tree(**one)]], 0, 1, 0, None)
    with pytest.raises(TypeError):
        assessor.gather([1], [5], 0, 1, 0, None)
    with pytest.raises(ValueError, match="differ in number"):
        assessor.gather([1, 2], [[tree()]], 0, 1, 0, None)
    assessor.gather([1], [[tree()]], 0, 1, 0, None)
    assert assessor.choose_all(9, 9) == [([5], [-1], [0.5], [1], [3])]
