import random

import pytest

from quickmatch.engine.speculation.costs import ROW_EDGES, CostTable
from quickmatch.engine.speculation.pool import Pool, cut, in_line
from quickmatch.engine.speculation.tree import DraftTree, Source


def table(plain_s: float, *points: tuple[int, float], num_seqs: int = 1) -> CostTable:
    costs = CostTable()
    for _ in range(40):
        costs.observe(num_seqs, num_seqs, plain_s)
        for num_rows, seconds in points:
            costs.observe(num_seqs, num_rows, seconds)
    return costs


def chain(chance: float, length: int) -> list[float]:
    return [chance**depth for depth in range(1, length + 1)]


def best(pool: Pool, costs: CostTable, num_seqs: int = 1, max_nodes: int = 512) -> int:
    choice = pool.best(costs.of_step(num_seqs, 0.0), num_seqs, max_nodes)
    return 0 if choice is None else choice.num_nodes


def test_takes_what_a_stair_offers_and_stops_before_the_next() -> None:
    # Guards: a number chosen by a smooth cost, in the middle of a stair or just above its edge.
    costs = table(1.0, (2, 1.2), (8, 1.2), (9, 2.4), (16, 2.4))
    assert best(Pool([chain(0.9, 15)], 0.02), costs) == 7


def test_nodes_that_add_next_to_nothing_are_left_out() -> None:
    # Guards: rows filled up with tokens that are hardly ever right, because they look free.
    costs = table(1.0, (2, 1.2), (16, 1.2))
    assert best(Pool([chain(0.5, 15)], 0.0), costs) < 10


def test_few_numbers_of_rows_are_in_use() -> None:
    # Guards: a new number of rows in every step, for which the machine makes kernels each time.
    costs = table(1.0, (34, 1.1), (200, 1.4), num_seqs=32)
    numbers = {
        32 + best(Pool([chain(0.9, length)] * 32, 0.02), costs, num_seqs=32)
        for length in range(1, 16)
    }
    assert numbers <= {32, *ROW_EDGES}


def test_finds_that_only_many_drafts_are_worth_it() -> None:
    # Guards: a search that stops at the first number that does not pay.
    costs = table(1.0, (2, 3.0), (4, 3.0), (9, 3.0), (16, 3.1))
    pool = Pool([chain(0.9, 15)], 0.02)
    choice = pool.best(costs.of_step(1, 0.0), 1, 512)
    assert choice is not None
    assert choice.num_nodes >= 8
    assert choice.tokens_per_s > 1.0


def test_seconds_spent_already_make_more_nodes_worth_it() -> None:
    # Guards: rows of prompts in the same step, or drafting, left out of the reckoning.
    costs = table(1.0, (2, 1.2), (4, 1.5), (8, 2.2), (16, 4.0))
    pool = Pool([chain(0.8, 15)], 0.02)
    few = pool.best(costs.of_step(1, 0.0), 1, 512)
    many = pool.best(costs.of_step(1, 5.0), 1, 512)
    assert few is not None
    assert many is not None
    assert many.num_nodes > few.num_nodes


def test_sequences_share_by_likelihood() -> None:
    # Guards: the same number for each sequence, whatever its draft is worth.
    pool = Pool([chain(0.9, 8), [], chain(0.3, 8)], 0.0)
    sizes = [len(nodes) for nodes in pool.split(7)]
    assert sizes == [7, 0, 0] or sizes == [6, 0, 1]
    assert [len(nodes) for nodes in pool.split(10)][2] >= 1


def test_limits_hold() -> None:
    # Guards: more rows than the step has room for; an empty pool that is chosen from.
    costs = table(1.0, (2, 1.0), (32, 1.0))
    assert best(Pool([chain(0.95, 20)], 0.0), costs, max_nodes=5) <= 5
    assert best(Pool([chain(0.95, 20)], 0.0), costs, max_nodes=0) == 0
    assert best(Pool([[], []], 0.0), costs) == 0
    assert len(Pool([chain(0.5, 10)], 0.2)) == 2


def random_tree(dice: random.Random, size: int) -> tuple[DraftTree, list[float]]:
    tree, paths = DraftTree(), []
    for node in range(size):
        parent = dice.randrange(-1, node)
        chance = dice.uniform(0.1, 0.98)
        tree.add(node, parent, chance, Source.HEAD)
        paths.append(chance * (1.0 if parent < 0 else paths[parent]))
    return tree, paths


@pytest.mark.parametrize("seed", range(5))
def test_any_beginning_is_a_tree_in_depth_first_order(seed: int) -> None:
    # Guards: a node without its parent; a likeliest path whose KV does not lie in line.
    dice = random.Random(seed)
    drafts = [random_tree(dice, dice.randint(1, 24)) for _ in range(4)]
    pool = Pool([paths for _, paths in drafts], 0.0)
    for count in range(1, len(pool) + 1):
        for (tree, paths), nodes in zip(drafts, pool.split(count), strict=True):
            if not nodes:
                continue
            ordered = in_line(tree, nodes)
            assert sorted(ordered) == sorted(nodes)
            smaller = DraftTree(*cut(tree, ordered))
            assert smaller == tree.keep(ordered)
            assert all(parent < node for node, parent in enumerate(smaller.parents))
            place = 0  # the likeliest path comes first, one node behind the other
            while True:
                below = [n for n in nodes if tree.parents[n] == ordered[place]]
                if not below:
                    break
                place += 1
                assert ordered[place] == max(below, key=paths.__getitem__)
