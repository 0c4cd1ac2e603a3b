import pytest

from quickmatch.engine.speculation.costs import CostTable
from quickmatch.engine.speculation.model_use import ModelPlan, ModelUse, Outlook
from quickmatch.engine.speculation.promise import Promises
from quickmatch.engine.speculation.tree import DraftTree, Source
from tests.unit.engine.speculation.simulation import cpu_cost

PASS_S = 0.2e-3
Found = tuple[list[int], int, int, float]


@pytest.fixture
def costs() -> CostTable:
    table = CostTable()
    for _ in range(5):
        for num_seqs in (1, 8):
            for factor in (1, 2, 4, 8, 16):
                table.observe(num_seqs, num_seqs * factor, cpu_cost(num_seqs, num_seqs * factor))
    return table


def use_with(chance: float, *, pass_s: float = PASS_S, depth: int = 8) -> ModelUse:
    promises = Promises(16)
    use = ModelUse(promises, max_depth=16, max_nodes=24)
    tree = DraftTree.chain(range(depth), [0.9] * depth, Source.HEAD)
    for _ in range(60):
        promises.add(1, depth, tree, [chance ** (d + 1) for d in range(depth)])
        for timed in (1, depth):
            use.drafted(ModelPlan((0,), timed, 1, timed), 1, timed, timed * pass_s, 1.0)
    return use


def plain(costs: CostTable, num_seqs: int) -> Outlook:
    rate = num_seqs / costs.plain_s(num_seqs)
    return Outlook(rate, [0.0] * num_seqs, [0] * num_seqs, 0.0, lambda _: 0.0)


def settle(use: ModelUse, costs: CostTable, outlook: Outlook) -> Found | None:
    able = [(i, 1.0) for i in range(len(outlook.gains))]
    found = None
    for now in range(100):
        found = use.plan(costs, outlook, able, now=now)
    return found


@pytest.mark.parametrize(("chance", "shallow", "deep"), [(0.5, 1, 3), (0.7, 2, 7), (0.9, 5, 12)])
def test_depth_follows_what_is_promised(
    costs: CostTable, chance: float, shallow: int, deep: int
) -> None:
    # Guards: a depth that is fixed, or stuck where it began.
    found = settle(use_with(chance), costs, plain(costs, 1))
    assert found is not None
    assert shallow <= found[1] <= deep


def test_a_slow_drafter_is_not_used(costs: CostTable) -> None:
    # Guards: accepted tokens counted without the time that drafting takes.
    assert settle(use_with(0.7, pass_s=3e-3), costs, plain(costs, 1)) is None


def test_a_promise_of_nothing_is_not_used(costs: CostTable) -> None:
    # Guards: the optimism of the start that never ends.
    assert settle(use_with(0.05), costs, plain(costs, 1)) is None


def test_only_those_who_gain_are_drafted_for(costs: CostTable) -> None:
    # Guards: the model run for sequences whose other drafts are better.
    outlook = plain(costs, 8)
    for i in range(4):
        outlook.gains[i], outlook.nodes[i] = 2.0, 3
    outlook.gain = lambda num_nodes: 8 * num_nodes / 12
    outlook.tokens_per_s = (8 + 8) / costs.step_s(8, 20)
    found = settle(use_with(0.8), costs, outlook)
    assert found is not None
    assert set(found[0]) <= {4, 5, 6, 7}


def test_comes_into_use_and_goes_out_with_a_dwell(costs: CostTable) -> None:
    # Guards: in and out of use with every bit of noise.
    use = use_with(0.8)
    outlook = plain(costs, 1)
    able = [(0, 1.0)]
    use.plan(costs, outlook, able, now=0)
    assert use.is_on
    states = []
    for now in range(1, 200):
        good = now % 4 == 0  # one step in four is worth it: it stays
        outlook.tokens_per_s = (1.0 if good else 9.0) / costs.plain_s(1)
        use.plan(costs, outlook, able, now=now)
        states.append(use.is_on)
    assert all(states)
    outlook.tokens_per_s = 9.0 / costs.plain_s(1)
    for now in range(200, 300):
        found = use.plan(costs, outlook, able, now=now)
        assert found is None
    assert not use.is_on


def test_the_likeliest_path_of_a_wide_tree_tells_of_narrow_ones() -> None:
    # Guards: a width chosen by the optimism about the others that were never tried.
    promises = Promises(4)
    tree = DraftTree()
    for token_id, parent in ((1, -1), (2, -1), (3, 0), (4, 1)):
        tree.add(token_id, parent, 0.5, Source.HEAD)
    for _ in range(100):
        promises.add(2, 3, tree, [0.5, 0.3, 0.2, 0.1])
    assert promises.look(1)[:2] == pytest.approx([0.5, 0.7], abs=0.05)
    assert promises.look(2)[:2] == pytest.approx([0.8, 1.1], abs=0.05)


def test_what_a_drafting_takes_is_a_line_through_the_depths_that_were_timed(
    costs: CostTable,
) -> None:
    # Guards: a multiple of one level, by which shallow drafts seem half as dear as they are.
    def timed(*seen: tuple[int, float]) -> ModelUse:
        use = ModelUse(Promises(16), max_depth=16, max_nodes=24)
        for depth, seconds in seen * 4:
            use.drafted(ModelPlan((0,), depth, 1, depth), 1, depth, seconds, 1.0)
        return use

    use = timed((1, 0.17e-3), (5, 0.42e-3))
    for depth, seconds in ((1, 0.17e-3), (3, 0.295e-3), (5, 0.42e-3)):
        assert use.drafting_s(costs, 1, depth) == pytest.approx(seconds * costs.factor)
    assert 0.42e-3 < use.drafting_s(costs, 1, 8) / costs.factor < 0.42e-3 * 8 / 5
    alone = timed((5, 0.42e-3))
    assert 0.42e-3 / 5 < alone.drafting_s(costs, 1, 1) / costs.factor < 0.42e-3


@pytest.mark.parametrize(
    ("one_s", "eight_s", "four_s", "most_s"),
    [
        (0.2e-3, 0.9e-3, 0.5e-3, 3.3e-3),  # a row more takes 0.1 ms
        (0.8e-3, 0.8e-3, 0.8e-3, 0.8e-3),  # nothing: its weights are what takes the time
        (0.9e-3, 0.5e-3, 0.5e-3, 0.5e-3),  # a slow moment, not a gain
    ],
)
def test_what_many_take_goes_on_as_from_one_batch_to_the_next(
    one_s: float, eight_s: float, four_s: float, most_s: float, costs: CostTable
) -> None:
    use = ModelUse(Promises(16), 16, 24)
    for _ in range(3):
        use.drafted(ModelPlan((), 4, 1, 4), 1, 4, one_s, 1.0)
        use.drafted(ModelPlan((), 4, 1, 4), 8, 4, eight_s, 1.0)
    for num_rows, seconds in ((1, one_s), (4, four_s), (8, eight_s), (32, most_s)):
        assert use.drafting_s(costs, num_rows, 4) == pytest.approx(seconds * costs.factor)


def test_another_drafter_is_believed_but_not_timed_anew(costs: CostTable) -> None:
    # Guards: a new head judged by the old one's promises, or thought to draft for nothing.
    use = use_with(0.0, pass_s=0.3e-3)
    assert settle(use, costs, plain(costs, 1)) is None
    use.renew()
    assert use.drafting_s(costs, 1, 2) == pytest.approx(0.6e-3)
    assert use.plan(costs, plain(costs, 1), [(0, 1.0)], now=101) is not None


def test_a_machine_that_slows_down_makes_drafting_dearer_by_as_much(costs: CostTable) -> None:
    # Guards: a pass timed in a slow hour and believed in a quick one, so that nothing pays.
    use = use_with(0.7)
    usual_s = use.drafting_s(costs, 1, 3)
    for _ in range(200):
        costs.observe(1, 1, 2 * cpu_cost(1, 1))
    assert costs.factor > 1.2
    assert use.drafting_s(costs, 1, 3) == pytest.approx(costs.factor * usual_s)
    before = use.drafting_s(costs, 1, 3)
    for _ in range(40):
        use.drafted(ModelPlan((0,), 3, 1, 3), 1, 3, 3 * PASS_S * costs.factor, costs.factor)
    assert use.drafting_s(costs, 1, 3) == pytest.approx(before)


def test_paths_are_gone_on_from_where_the_next_token_is_worth_its_level(costs: CostTable) -> None:
    # Guards: levels passed for paths that the target is all but sure to leave.
    least = []
    for pass_s in (0.05e-3, 0.2e-3):
        found = settle(use_with(0.9, pass_s=pass_s), costs, plain(costs, 1))
        assert found is not None
        level_s = 8 * pass_s / (1.5 + 8) * costs.factor
        rate = (1 + 0.9) / (costs.step_s(1, 9) + 9 * pass_s)  # at the least
        assert found[3] > 0.5 * level_s * rate
        least.append(found[3])
    assert least[0] < least[1] <= 0.5


def test_trees_that_stop_early_promise_less_of_deeper_levels() -> None:
    # Guards: a level that is asked for, and timed, as if it had the mean of those who reached it.
    stopping, whole = Promises(8), Promises(8)
    short = DraftTree.chain([1], [0.5], Source.HEAD)
    deep = DraftTree.chain([1, 2, 3, 4], [0.9] * 4, Source.HEAD)
    paths = [0.9, 0.8, 0.7, 0.6]
    for _ in range(200):
        for promises in (stopping, whole):
            promises.add(1, 4, deep, paths)
        stopping.add(1, 4, short, [0.5])
        whole.add(1, 1, short, [0.5])
    assert stopping.look(1)[0] == whole.look(1)[0] == pytest.approx(0.7, abs=0.02)
    assert stopping.look(1)[3] == pytest.approx(0.7 + (0.8 + 0.7 + 0.6) / 2, abs=0.1)
    assert whole.look(1)[3] > stopping.look(1)[3] + 0.3


def test_what_the_index_goes_on_with_is_expected_too() -> None:
    # Guards: a model thought to bring its own tokens only, and left alone.
    promises = Promises(8)
    tree = DraftTree.chain([1], [0.5], Source.HEAD)
    for _ in range(100):
        promises.add(1, 1, tree, [0.5])
    assert promises.behind == 0.0
    tree.add(2, 0, 0.8, Source.SUFFIX_GLOBAL)
    tree.add(3, 1, 0.8, Source.SUFFIX_GLOBAL)
    for _ in range(400):
        gain, _ = promises.add(1, 1, tree, [0.5, 0.4, 0.3])
    assert promises.behind == pytest.approx(0.7, abs=0.02)
    assert gain == 0.5
    promises.renew()
    assert promises.behind == 0.0
