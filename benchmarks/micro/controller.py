"""What the controller of speculation takes a step: python -m benchmarks.micro.controller

Drives the real controller with made-up drafts that are right with a known chance, and prints the
median of its own time by batch size, with its parts, and two other quantiles: on a machine that
does other work too, the fast end is what the code costs. No model runs.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence

from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.speculation.controller import Controller
from quickmatch.engine.speculation.costs import CostTable, points_to_measure
from quickmatch.engine.speculation.tree import DraftTree, Source

BARS_US = {8: 100.0, 32: 400.0}
PARTS = ("ask", "model", "choose", "verified", "stepped")


def step_s(num_seqs: int, num_rows: int) -> float:
    """A staircase like that of a small model on two CPU cores."""
    return 1.4e-3 + 0.2e-3 * num_seqs + 0.02e-3 * 8 * (num_rows // 8)


def make_tree(dice: random.Random, num_nodes: int, source: Source, is_chain: bool) -> DraftTree:
    """Draft num_nodes nodes; token d is the right one at depth d, in four of five cases."""
    tree, depths = DraftTree(), [0]
    for node in range(num_nodes):
        goes_on = is_chain or node == 0 or dice.random() < 0.6
        parent = node - 1 if goes_on else dice.randrange(-1, node)
        depth = depths[parent + 1] + 1
        depths.append(depth)
        siblings = [tree.token_ids[i] for i, p in enumerate(tree.parents) if p == parent]
        is_right = dice.random() < (0.1 if siblings else 0.8) and depth not in siblings
        token_id = depth if is_right else 1000 + node
        confidence = dice.uniform(0.05, 0.2) if siblings else dice.uniform(0.5, 1.0)
        tree.add(token_id, parent, confidence, source, 8)
    return tree


def accept(tree: DraftTree | None) -> list[int]:
    """Return the accepted nodes: the tokens 1, 2, 3, …"""
    accepted: list[int] = []
    children = {} if tree is None else tree.children()
    node: int | None = -1
    while node is not None:
        node = children.get(node, {}).get(len(accepted) + 1)
        if node is not None:
            accepted.append(node)
    return accepted


def measure(
    num_seqs: int,
    num_nodes: int,
    *,
    is_chain: bool,
    with_model: bool,
    num_steps: int,
    floor: float,
) -> list[tuple[float, ...]]:
    """Return each step's microseconds by part, after a warm-up of a third as many steps."""
    costs = CostTable()
    for point in points_to_measure(64, num_nodes):
        costs.observe(*point, step_s(*point))
    controller = Controller(costs, SpeculationConfig(min_path_probability=floor))
    dice = random.Random(0)
    ids = list(range(num_seqs))
    samples: list[tuple[float, ...]] = []
    for _ in range(num_steps + num_steps // 3):
        trees: list[list[DraftTree]] = [
            [make_tree(dice, num_nodes, Source.SUFFIX_GLOBAL, is_chain)] for _ in ids
        ]
        samples.append(one_step(controller, ids, trees, with_model, dice))
    return samples[num_steps // 3 :]


def one_step(
    controller: Controller,
    ids: Sequence[int],
    trees: list[list[DraftTree]],
    with_model: bool,
    dice: random.Random,
) -> tuple[float, ...]:
    """Drive the controller through one step; return its microseconds by part."""
    clock, num_seqs = time.perf_counter, len(ids)
    marks = [clock()]
    asked = [controller.should_draft(i) for i in ids]
    marks.append(clock())
    trees = [drafts if wanted else [] for drafts, wanted in zip(trees, asked, strict=True)]
    start = clock()
    plan = controller.wants_model(ids, trees, able=ids) if with_model else None
    spent = [marks[1] - marks[0], clock() - start]
    for i in plan.sequence_ids if plan is not None else ():
        trees[i].append(make_tree(dice, plan.max_nodes if plan else 1, Source.HEAD, True))
    start = clock()
    chosen = controller.choose(ids, trees, max_rows=512)
    spent.append(clock() - start)
    accepted = [accept(tree) for tree in chosen]
    start = clock()
    for i, tree, nodes in zip(ids, chosen, accepted, strict=True):
        controller.verified(i, tree, nodes, list(range(1, len(nodes) + 2)))
    spent.append(clock() - start)
    num_rows = num_seqs + sum(len(tree) for tree in chosen if tree is not None)
    start = clock()
    controller.stepped(
        num_seqs=num_seqs,
        num_rows=num_rows,
        num_emitted=num_seqs + sum(map(len, accepted)),
        draft_s=20e-6 * num_seqs,
        step_s=step_s(num_seqs, num_rows) * dice.uniform(1.0, 1.1),
    )
    spent.append(clock() - start)
    return tuple(seconds * 1e6 for seconds in spent)


def main() -> None:
    """Print one row a case, then all as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--floor", type=float, default=0.5, help="min_path_probability")
    arguments = parser.parse_args()
    rows = []
    print(
        f"{'case':28}{'p10':>8}{'median':>8}{'p95':>8}  " + "".join(f"{part:>10}" for part in PARTS)
    )
    for num_seqs in (1, 8, 32):
        for name, is_chain, with_model in (
            ("chains", True, False),
            ("trees", False, False),
            ("trees and a head", False, True),
        ):
            samples = measure(
                num_seqs,
                arguments.nodes,
                is_chain=is_chain,
                with_model=with_model,
                num_steps=arguments.steps,
                floor=arguments.floor,
            )
            totals = sorted(map(sum, samples))
            fast, median, slow = (totals[int(q * len(totals))] for q in (0.1, 0.5, 0.95))
            parts = [sorted(column)[len(column) // 2] for column in zip(*samples, strict=True)]
            print(
                f"{num_seqs:3} x {arguments.nodes} {name:20}{fast:8.0f}{median:8.0f}{slow:8.0f}  "
                + "".join(f"{part:10.1f}" for part in parts)
            )
            bar = BARS_US.get(num_seqs)
            rows.append(
                {
                    "num_seqs": num_seqs,
                    "case": name,
                    "fast_us": fast,
                    "median_us": median,
                    "bar_us": bar,
                }
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
