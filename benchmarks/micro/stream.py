"""Speculation over true texts on a made-up clock: python -m benchmarks.micro.stream --seqs 8

Engine, scheduler, suffix index and controller are the real ones. What stands in for the target is
texts that are known (the credit example's), a table of seconds by rows, and a noise like that of a
machine that does other work too; the head is right as often as it is told to be. Seconds of the
host are this thread's own. So what a change of the deliberation does shows to the per cent, which
no run on a shared machine does. Nothing of this is a measurement of an engine.
"""

import argparse
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import harmonic_mean, mean
from typing import Any, ClassVar

from rich.console import Console
from rich.table import Table

from benchmarks.speculation.calls import Encoder
from benchmarks.speculation.workloads import Item, credit
from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.batch import Sampled, Span, StepBatch, StepResult
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.eviction import KVLimit
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.speculation.costs import interpolate
from quickmatch.engine.speculation.kept_rows import DraftRequest
from quickmatch.engine.speculation.tree import DraftTree, Source
from quickmatch.engine.wire import Generate

ARMS = {"plain": (), "suffix": ("suffix",), "head": ("head",), "adapted": ("suffix", "head")}
SHARES = ("steps", "drafting", "telling", "host", "rests")
_END = 2
_PACE_S = 0.05  # for so long the machine is as busy as it is
_SPIKE, _SPIKE_FACTOR = 0.005, 4.0  # steps that something held up, and how long
# Milliseconds by rows: the shipped model's steps on two cores of a Cascade Lake, in bfloat16.
_STEP_MS = [(1, 0.88), (2, 0.95), (4, 1.05), (6, 1.35), (8, 1.7), (16, 2.7), (32, 4.3), (64, 7.2)]
_STEP_MS += [(128, 13.5), (256, 25.6)]
_PROMPT_ROW_MS = 0.1
# And its head's: a drafting, a level, a level's further sequence, a token that has come since.
_DRAFT_MS, _LEVEL_MS, _LEVEL_SEQ_MS, _BEHIND_MS = 0.2, 0.137, 0.053, 0.001
_TOLD_MS, _TOLD_ROW_MS = 0.02, 0.0022  # telling it of a step, and of each row


@dataclass(slots=True)
class Machine:
    """The clock, and how slow all is at a time; the same at the same time for every arm."""

    sigma: float
    seed: int
    ahead_s: float = 0.0
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    def __call__(self) -> float:
        """Return the seconds since the start."""
        return self.ahead_s + time.thread_time()

    def spend(self, seconds: float) -> float:
        """Let a computation take its time; return how long it took."""
        pace = random.Random(f"{self.seed} {int(self() / _PACE_S)}").gauss(0.0, self.sigma)
        seconds *= math.exp(pace + self.dice.gauss(0.0, self.sigma / 4))
        if self.sigma and self.dice.random() < _SPIKE:
            seconds *= _SPIKE_FACTOR
        self.ahead_s += seconds
        return seconds


class KnownTexts:
    """A runner whose model has its answers written down. Implements `protocol.Runner`."""

    max_model_len, num_blocks, block_size, vocab_size = 2048, 4096, 16, 8192
    eos_token_ids = (_END,)
    kv_limit: KVLimit | None = None
    max_adapters = num_adapters = 0
    draft_versions: ClassVar[dict[str, str]] = {}

    def __init__(
        self, machine: Machine, answers: dict[tuple[int, ...], list[int]], scale: float, head: float
    ) -> None:
        """scale: of a step's seconds; head: the share of its tokens that are right; 0: none."""
        self._machine, self._answers = machine, answers
        self._scale, self._head = scale, head
        self._running: dict[int, tuple[int, list[int]]] = {}  # prompt's length, answer
        self._num_drafted_behind: dict[int, int] = {}
        self.seconds: Counter[str] = Counter()  # by what they went to

    def run(self, batch: StepBatch) -> StepResult:
        own = [s for s in batch.spans if s.tree is not None or s.num_tokens == 1]
        rows = sum(s.num_tokens for s in own)
        prompts_s = 1e-3 * _PROMPT_ROW_MS * self._scale * (len(batch.token_ids) - rows)
        self.seconds["prompts"] += self._machine.spend(prompts_s)
        self.seconds["steps"] += self._machine.spend(self._step_s(rows) if own else 0.0)
        told = sum(s.num_tokens for s in own if s.is_watched) if self._head else 0
        told_s = self._machine.spend(1e-3 * (_TOLD_MS + _TOLD_ROW_MS * told)) if told else 0.0
        self.seconds["telling"] += told_s
        return StepResult([self._sample(span) for span in batch.spans], told_s)

    def _step_s(self, num_rows: int) -> float:
        return 1e-3 * self._scale * interpolate(_STEP_MS, num_rows)

    def time_step(self, num_seqs: int, num_rows: int) -> float:  # noqa: ARG002
        return self._machine.spend(self._step_s(num_rows))

    def _sample(self, span: Span) -> Sampled | None:
        sample = span.sample
        if sample is None:
            return None
        if span.sequence_id not in self._running:
            prompt = tuple(sample.prompt_token_ids)
            self._running[span.sequence_id] = len(prompt), self._answers[prompt]
        answer = self._running[span.sequence_id][1]
        children = {} if span.tree is None else span.tree.children()
        node, sampled = -1, Sampled([])
        while True:
            place = len(sample.output_token_ids) + len(sampled.accepted)
            token_id = answer[place] if place < len(answer) else _END
            sampled.token_ids.append(token_id)
            child = children.get(node, {}).get(token_id)
            if child is None:
                return sampled
            sampled.accepted.append(child)
            node = child

    # ---- the head

    def draft(
        self,
        requests: list[DraftRequest],
        *,
        depth: int,
        width: int,
        max_nodes: int,
        least_path: float,
    ) -> list[DraftTree]:
        most = min(depth, max_nodes)
        made = [self._chain(request, most, least_path) for request in requests]
        level_ms = _LEVEL_MS + _LEVEL_SEQ_MS * (len(requests) * width - 1)
        behind = sum(self._catch_up(request) for request in requests)
        num_levels = max(len(tree) for tree in made)
        seconds = 1e-3 * (_DRAFT_MS + num_levels * level_ms + behind * _BEHIND_MS)
        self.seconds["drafting"] += self._machine.spend(seconds)
        return made

    def _catch_up(self, request: DraftRequest) -> int:
        known = self._num_drafted_behind.get(request.sequence_id, 0)
        self._num_drafted_behind[request.sequence_id] = len(request.token_ids)
        return len(request.token_ids) - known

    def _chain(self, request: DraftRequest, depth: int, least_path: float) -> DraftTree:
        num_prompt, answer = self._running[request.sequence_id]
        first = len(request.token_ids) - num_prompt
        dice = random.Random(f"{request.sequence_id} {first}")
        tree, is_right, path = DraftTree(), True, 1.0
        for place in range(first, first + depth):
            confidence = dice.betavariate(4 * self._head, 4 * (1 - self._head))
            is_right = is_right and dice.random() < confidence and place < len(answer)
            token_id = answer[place] if is_right else 7000 + dice.randrange(1000)
            tree.add(token_id, len(tree) - 1, min(confidence, 0.999), Source.HEAD)
            path *= confidence
            if path < least_path:
                break
        return tree

    def can_draft(self, adapter_row: int, *, is_watched: bool) -> bool:  # noqa: ARG002
        return is_watched and self._head > 0.0

    def forget(self, sequence_id: int) -> None:
        self._running.pop(sequence_id, None)
        self._num_drafted_behind.pop(sequence_id, None)

    def put_draft(self, adapter: str, draft: str, head: Any) -> None:
        pass

    def free_memory_bytes(self) -> int:
        return 1 << 40


@dataclass(frozen=True, slots=True)
class Text:
    """A call and what the target answers."""

    prompt: tuple[int, ...]
    answer: list[int]


def texts_of(items: Sequence[Item], encoder: Encoder) -> list[Text]:
    """Encode items, the writer's answers with them."""
    calls = encoder.calls(items)
    answers = [encoder.ids(item.answer) for item in items]
    return [Text(c.prompt, [*a, _END]) for c, a in zip(calls, answers, strict=True)]


@dataclass(frozen=True, slots=True)
class Round:
    """What came of a round, prompts left out."""

    tokens_per_s: float
    tokens_a_forward: float
    shares: dict[str, float]  # of the seconds; and of the steps, those that were a rest's


class Arm:
    """An engine on the made-up clock, that answers round after round."""

    def __init__(self, name: str, told: argparse.Namespace, past: list[Text], all_: list[Text]):
        self._machine = Machine(told.noise, told.seed)
        has_head = "head" in ARMS[name]
        answers = {text.prompt: text.answer for text in all_}
        head = told.head if has_head else 0.0
        self._runner = KnownTexts(self._machine, answers, told.scale, head)
        speculation = SpeculationConfig(drafters=ARMS[name])
        config = EngineConfig(model="", enable_prefix_caching=False, speculation=speculation)
        runner: Any = self._runner  # adapters and grammars are left out
        self._engine = Engine(runner, config, clock=self._machine)
        if self._engine.speculator is not None:
            self._engine.speculator.measure_costs(config.max_num_seqs)
            self._engine.remember("", None, [[*t.prompt[-8:], *t.answer] for t in past])
        if has_head:
            self._engine.swap_draft("", "head@1", None)
        self._num_requests = 0

    def round(self, texts: Sequence[Text], num_seqs: int) -> Round:
        """Answer the texts, so many at a time."""
        engine, waiting = self._engine, list(texts)
        before, spent = self._counts(), Counter(self._runner.seconds)
        num_tokens, started = -len(texts), self._machine()  # the first are the prompts'
        num_steps = num_rests = 0
        while waiting or engine.has_work:
            while waiting and engine.scheduler.num_live < num_seqs:
                self._add(waiting.pop(0))
            num_tokens += sum(len(event.token_ids) for event in engine.step())
            num_steps += 1
            num_rests += engine._is_resting
        spent = self._runner.seconds - spent
        seconds = self._machine() - started - spent.pop("prompts")
        emitted, forwards = (b - a for a, b in zip(before, self._counts(), strict=True))
        shares = {name: spent[name] / seconds for name in SHARES[:3]}
        shares |= {"host": 1.0 - sum(shares.values()), "rests": num_rests / num_steps}
        return Round(num_tokens / seconds, emitted / forwards if forwards else 1.0, shares)

    def _add(self, text: Text) -> None:
        self._num_requests += 1
        sampling = SamplingParams(temperature=0.0, max_tokens=400)
        prompt = list(text.prompt)
        refused = self._engine.add(
            Generate(request_id=str(self._num_requests), prompt_token_ids=prompt, sampling=sampling)
        )
        if refused is not None:
            raise RuntimeError(refused.error)

    def _counts(self) -> tuple[int, int]:
        stats = self._engine.stats().speculation
        if stats is None:
            return 0, 0
        return stats.num_emitted, stats.num_verified + stats.num_plain


def simulate(told: argparse.Namespace) -> dict[str, list[Round]]:
    """Return each arm's rounds."""
    workload, encoder = credit(told.past, told.rounds * told.calls, told.seed), Encoder()
    past, test = (texts_of(items, encoder) for items in (workload.train, workload.test))
    found: dict[str, list[Round]] = {}
    for name in ("plain", *told.arms):
        arm = Arm(name, told, past, test)
        rounds = (test[i : i + told.calls] for i in range(0, len(test), told.calls))
        found[name] = [arm.round(texts, told.seqs) for texts in rounds]
    return found


def main() -> None:
    """Print each arm's rounds, as multiples of plain decoding's."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.micro.stream",
        description="What speculation's deliberation makes of known texts and step costs.",
    )
    parser.add_argument("--seqs", type=int, default=1, help="at a time")
    parser.add_argument("--calls", type=int, default=24, help="a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--past", type=int, default=300, help="answers that the index knows")
    parser.add_argument("--scale", type=float, default=1.0, help="of a step's time")
    parser.add_argument(
        "--head", type=float, default=0.9, help="share of its tokens that are right"
    )
    parser.add_argument("--noise", type=float, default=0.2, help="sigma of the machine's pace")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--arms", type=lambda s: s.split(","), default=["suffix", "head", "adapted"]
    )
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    found = simulate(told)
    if told.json:
        print(json.dumps({name: [asdict(one) for one in rounds] for name, rounds in found.items()}))
        return
    plain = found.pop("plain")
    numbers = [str(i + 1) for i in range(told.rounds)]
    table = Table("× plain (tokens a forward)", *numbers, "all", *SHARES)
    for name, rounds in found.items():
        pairs = list(zip(rounds, plain, strict=True))
        ratios = [mine.tokens_per_s / usual.tokens_per_s for mine, usual in pairs]
        cells = [
            f"{ratio:.2f} ({one.tokens_a_forward:.2f})"
            for ratio, one in zip(ratios, rounds, strict=True)
        ]
        shares = [f"{mean(one.shares[share] for one in rounds):.0%}" for share in SHARES]
        table.add_row(name, *cells, f"{harmonic_mean(ratios):.2f}", *shares)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
