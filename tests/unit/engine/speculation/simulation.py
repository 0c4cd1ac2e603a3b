"""A serving engine made of dice, for tests of the controller: true acceptance and costs are known.

Each sequence has a text whose next tokens drafters guess right with a known chance; a step takes
the seconds of a known staircase, with noise and outliers. `Simulation.run` drives the controller
as the engine does; `best_rate` is the tokens a second of an oracle that knows everything.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.speculation.controller import Controller
from quickmatch.engine.speculation.costs import CostTable, points_to_measure
from quickmatch.engine.speculation.tree import DraftTree, Source

StepCost = Callable[[int, int], float]  # (num_seqs, num_rows) -> seconds
CHEAP_DRAFT_S = 20e-6
PROMPT_ROW_S = 0.1e-3
HOST_S = 10e-6  # of the controller and the loop around it, a sequence that is asked or drafted for


def cpu_cost(num_seqs: int, num_rows: int) -> float:
    """The staircase of a small model on two CPU cores: a plain step has its own code path."""
    if num_rows <= num_seqs:
        return 1.42e-3 + 0.19e-3 * num_seqs
    stairs = {1: 1.59, 8: 1.96, 12: 2.33, 16: 2.58, 24: 2.68, 32: 3.32}
    rows = next((stairs[end] for end in stairs if num_rows <= end), 3.32 + 0.05 * (num_rows - 32))
    return rows * 1e-3 + 0.135e-3 * (num_seqs - 1)


@dataclass
class Text:
    """What one sequence's drafters are worth: chances given that the path was right."""

    cheap: float | None = None  # None: nothing is found
    head: float | None = None
    raw_cheap: float = 0.8  # what the drafters believe
    raw_head: float = 0.7


@dataclass
class Tally:
    """What a stretch of steps did."""

    tokens: int = 0
    seconds: float = 0.0
    num_rows: list[int] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)  # plain, cheap, head by step

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def num_changes(self) -> int:
        return sum(a != b for a, b in zip(self.modes, self.modes[1:], strict=False))


class Simulation:
    """One engine with a fixed set of sequences."""

    def __init__(
        self,
        texts: Sequence[Text],
        *,
        cost: StepCost = cpu_cost,
        pass_s: float = 0.2e-3,
        noise: float = 0.03,
        outliers: float = 0.0,
        seed: int = 0,
        measured: bool = True,
        config: SpeculationConfig | None = None,
    ) -> None:
        self.texts = list(texts)
        self.cost, self.pass_s = cost, pass_s
        self.prompts_s = 0.0  # that the next drafting takes in prompts, too
        self.prompt_rows = 0  # of every step, whose time is not counted
        self.told_s = 0.0  # that telling heads adds to a step while one is in use
        self.dice = random.Random(seed)
        self._noise, self._outliers = noise, outliers
        self.costs = CostTable()
        # The most tokens a second, whatever is thrown away: that is what the oracle does.
        self.config = config or SpeculationConfig(min_path_probability=0.02)
        if measured:
            for num_seqs, num_rows in points_to_measure(32, self.config.max_draft_tokens)[:40]:
                for _ in range(2):
                    self.costs.observe(num_seqs, num_rows, self._noisy(cost(num_seqs, num_rows)))
        self.controller = Controller(self.costs, self.config)

    def _noisy(self, seconds: float) -> float:
        seconds *= 1.0 + abs(self.dice.gauss(0.0, self._noise))
        return (
            seconds * self.dice.uniform(2, 12) if self.dice.random() < self._outliers else seconds
        )

    def run(self, num_steps: int) -> Tally:
        """Run steps; the seconds counted are without noise, so that rates can be compared."""
        tally = Tally()
        for _ in range(num_steps):
            self._step(tally)
        return tally

    def _step(self, tally: Tally) -> None:
        controller, texts = self.controller, self.texts
        ids = list(range(len(texts)))
        if controller.begin_step():
            seconds = self.cost(len(ids), len(ids))
            noisy_s = self._noisy(seconds + self.prompt_rows * PROMPT_ROW_S)
            controller.rested(
                num_seqs=len(ids),
                step_s=noisy_s,
                plain_s=noisy_s,
                is_decode=not self.prompt_rows,
            )
            tally.tokens += len(ids)
            tally.seconds += seconds
            tally.num_rows.append(len(ids))
            tally.modes.append("plain")
            return
        trees: list[list[DraftTree]] = []
        busy_s, draft_s = 0.0, 0.0
        for i in ids:
            wanted = controller.should_draft(i)
            trees.append([self._draft(texts[i], Source.SUFFIX_LOCAL)] if wanted else [])
            draft_s += (CHEAP_DRAFT_S + HOST_S) * wanted
        trees = [[tree for tree in drafts if len(tree)] for drafts in trees]
        able = [i for i in ids if texts[i].head is not None]
        if able:
            plan = controller.wants_model(ids, trees, able=able)
            if plan is not None:
                seconds = self.pass_s * plan.depth * (1 + 0.05 * (len(plan.sequence_ids) - 1))
                seconds += self.prompts_s
                controller.model_drafted(
                    num_seqs=len(plan.sequence_ids),
                    depth=plan.depth,
                    num_levels=plan.depth,
                    seconds=seconds,
                    num_behind=500 if self.prompts_s else 1,
                )
                self.prompts_s = 0.0
                draft_s += seconds
                for i in plan.sequence_ids:
                    trees[i].append(self._draft(texts[i], Source.HEAD, plan.depth, plan.width))
        if any(trees):
            chosen = controller.choose(ids, trees, max_rows=512)
        else:
            chosen = controller.choose_none(ids)
        emitted = 0
        for i, tree in zip(ids, chosen, strict=True):
            accepted = [] if tree is None else self._verify(tree)
            token_ids = list(range(1, len(accepted) + 2))  # the right token at depth d is d
            controller.verified(i, tree, accepted, token_ids)
            emitted += len(token_ids)
        num_rows = len(ids) + sum(len(tree) for tree in chosen if tree is not None)
        true_s = self.cost(len(ids), num_rows)
        told_s = self.told_s if able and controller.uses_model else 0.0
        busy_s += true_s + draft_s + told_s
        controller.stepped(
            num_seqs=len(ids) + bool(self.prompt_rows),
            num_rows=num_rows + self.prompt_rows,
            num_emitted=emitted,
            draft_s=draft_s,
            step_s=self._noisy(true_s + self.prompt_rows * PROMPT_ROW_S) + told_s,
            told_s=told_s,
            num_told=len(ids) if told_s else 0,
            is_decode_only=not self.prompt_rows,
        )
        tally.tokens += emitted
        tally.seconds += busy_s
        tally.num_rows.append(num_rows)
        sources = {s for tree in chosen if tree is not None for s in tree.sources}
        tally.modes.append("head" if Source.HEAD in sources else "cheap" if sources else "plain")

    def _draft(self, text: Text, source: Source, depth: int = 16, width: int = 1) -> DraftTree:
        """A chain of `depth`, a head's with width - 1 more first children.

        Token d is the right one at depth d; whoever goes wrong stays wrong.
        """
        is_head = source is Source.HEAD
        chance = text.head if is_head else text.cheap
        tree = DraftTree()
        if chance is None:
            return tree
        raw, feature = (text.raw_head, 0) if is_head else (text.raw_cheap, 6)
        parent, is_right = -1, True
        for level in range(1, depth + 1):
            is_right = is_right and self.dice.random() < chance
            confidence = min(max(raw + self.dice.uniform(-0.1, 0.1), 0.02), 1.0)
            token_id = level if is_right else 1000 * source + level
            parent = tree.add(token_id, parent, confidence, source, feature)
        for other in range(1, width):
            tree.add(5000 + other, -1, 0.1, source, feature)
        return tree

    def _verify(self, tree: DraftTree) -> list[int]:
        accepted: list[int] = []
        children = tree.children()
        node: int | None = -1
        while node is not None:
            node = children.get(node, {}).get(len(accepted) + 1)
            if node is not None:
                accepted.append(node)
        return accepted


def gain(chance: float, num_nodes: int) -> float:
    """Expected accepted tokens of a chain."""
    return sum(chance**depth for depth in range(1, num_nodes + 1))


def best_rate(
    texts: Sequence[Text], *, cost: StepCost = cpu_cost, pass_s: float = 0.2e-3, limit: int = 16
) -> float:
    """Return the tokens a second of the best fixed policy by one who knows all chances.

    The same number of nodes for every sequence of the same chance: greedy over the pooled line.
    """
    num_seqs = len(texts)
    best = num_seqs / cost(num_seqs, num_seqs)
    for kind in ("cheap", "head"):
        chances = [getattr(text, kind) for text in texts]
        asked = [c for c in chances if c]
        line = sorted((c**d for c in asked for d in range(1, limit + 1)), reverse=True)
        total = float(num_seqs)
        for count, probability in enumerate(line, 1):
            total += probability
            depth = max(
                sum(1 for d in range(1, limit + 1) if c**d >= probability - 1e-12) for c in asked
            )
            if kind == "cheap":
                draft_s = (CHEAP_DRAFT_S + HOST_S) * len(asked)
            else:
                draft_s = pass_s * depth * (1 + 0.05 * (len(asked) - 1))
            best = max(best, total / (cost(num_seqs, num_seqs + count) + draft_s))
    return best
