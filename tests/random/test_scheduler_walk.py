"""Seeded random walks through the engine: arrivals, cancels, adapters, shared prefixes, drafts
right and wrong, and KV memory so small that preemption is common. After every move the books must
agree, and every request must have ended exactly once, with what it would have got alone.
"""

import random
from dataclasses import dataclass, field

import pytest

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.eviction import KVLimit
from quickmatch.engine.sequence import Sequence
from quickmatch.engine.speculation.speculator import Speculator
from quickmatch.engine.speculation.tree import DraftTree, Source
from quickmatch.engine.wire import Generate, Tokens
from tests.unit.engine.fake_runner import FakeRunner

NUM_WALKS = 150
NUM_MOVES = 400


@dataclass
class Asked:
    request: Generate
    content: str
    tokens: list[int] = field(default_factory=list)
    end: Tokens | None = None


class WalkSpeculator(Speculator):
    """Drafts trees at random, of wrong tokens and of those that the output will have."""

    def __init__(self, walk: "Walk") -> None:
        scheduler = walk.engine.scheduler
        super().__init__(walk.config.speculation, walk.runner, scheduler)
        self._walk = walk
        self._live = scheduler
        self._outputs: dict[str, list[int]] = {}

    def propose(self) -> dict[int, DraftTree]:
        rng = self._walk.rng
        return {s.id: self._tree(s) for s in self._live.decoding if rng.random() < 0.8}

    def _tree(self, sequence: Sequence) -> DraftTree:
        rng, walk, request_id = self._walk.rng, self._walk, sequence.request_id
        if request_id not in self._outputs:
            asked = walk.asked[request_id]
            prompt, params = asked.request.prompt_token_ids, asked.request.sampling
            alone = walk.runner.alone(prompt, params, content=asked.content)
            self._outputs[request_id] = alone[0]
        right = self._outputs[request_id][sequence.num_output_tokens :]
        room = sequence.max_len - sequence.num_tokens - 1
        tree, parent = DraftTree(), -1
        for token_id in right[: min(room, rng.randrange(6))]:
            for wrong in rng.sample(range(walk.runner.vocab_size), rng.randrange(3)):
                if wrong != token_id:
                    tree.add(wrong, parent, 0.5, Source.SUFFIX_LOCAL)
            if rng.random() < 0.2:
                break
            parent = tree.add(token_id, parent, 0.5, Source.SUFFIX_LOCAL)
        return tree


class Walk:
    """One engine of random shape, and everything that was ever asked of it."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        block_size = rng.choice([1, 2, 4, 7])
        self.runner = FakeRunner(
            num_blocks=rng.choice([28, 60, 120]) // block_size,
            block_size=block_size,
            max_model_len=rng.choice([24, 40, 90]),
            vocab_size=rng.choice([7, 53]),
        )
        self.runner.kv_limit = self._limit() if seed % 3 == 0 else None
        self.config = EngineConfig(
            model="fake",
            max_num_seqs=rng.choice([1, 4, 8]),
            max_num_batched_tokens=rng.choice([3, 8, 64]),
            max_queue_len=rng.choice([2, 20]),
            enable_prefix_caching=rng.random() < 0.8,
        )
        self.engine = Engine(self.runner, self.config)
        self.engine.speculator = WalkSpeculator(self)
        self.asked: dict[str, Asked] = {}
        self.versions: dict[str, str] = {}  # adapter that takes requests -> content
        self.num_loads = 0
        self.heads = [[rng.randrange(1, 7) for _ in range(30)] for _ in range(3)]

    def _limit(self) -> KVLimit | None:
        """Return a limit on a sequence's KV, if one fits."""
        size, num_blocks = self.runner.block_size, self.rng.choice([2, 3, 8])
        if num_blocks > self.runner.num_blocks:
            return None
        num_kept = (num_blocks - 1) * size
        return KVLimit(num_blocks * size, num_kept, 1, min(2, num_kept - 1))

    def move(self) -> None:
        moves = [self.arrive, self.step, self.cancel, self.load, self.unload]
        self.rng.choices(moves, weights=[4, 16, 0.5, 0.4, 0.4])[0]()
        self.engine.scheduler.check_integrity()

    def arrive(self) -> None:
        rng = self.rng
        head = rng.choice(self.heads)[: rng.choice([0, 0, 1, 5, 12, 30])]
        prompt = head + [rng.randrange(1, 7) for _ in range(rng.randrange(1, 9))]
        adapter = rng.choice([None, *self.versions])
        request = Generate(
            request_id=f"r{len(self.asked)}",
            prompt_token_ids=prompt,
            sampling=SamplingParams(
                seed=rng.randrange(3),
                max_tokens=rng.choice([None, 1, 12, 25]),
                ignore_eos=rng.random() < 0.7,
                min_tokens=rng.choice([0, 0, 3]),
                stop_token_ids=rng.choice([(), (), (2,)]),
            ),
            adapter=adapter,
            isolation_key=rng.choice(["", "x"]),
        )
        content = "base" if adapter is None else self.versions[adapter]
        asked = self.asked[request.request_id] = Asked(request, content)
        refusal = self.engine.add(request)
        if refusal is not None:
            assert refusal.error_code in ("queue_full", "context_length_exceeded")
            asked.end = refusal

    def step(self) -> None:
        if not self.engine.has_work:
            return
        events = self.engine.step()
        batch = self.runner.batches[-1]
        assert 0 < len(batch.token_ids) <= self.config.max_num_batched_tokens
        assert len(batch.spans) <= self.config.max_num_seqs
        for event in events:
            self.take(event)

    def take(self, event: Tokens) -> None:
        asked = self.asked[event.request_id]
        assert asked.end is None, f"{event.request_id} goes on after its end"
        asked.tokens.extend(event.token_ids)
        if event.finish_reason is not None:
            asked.end = event

    def cancel(self) -> None:
        if self.asked:
            end = self.engine.cancel(self.rng.choice(list(self.asked)))
            if end is not None:
                self.take(end)

    def load(self) -> None:
        # Sometimes an id that was loaded before, with other content.
        self.num_loads += 1
        name = f"a@{self.rng.randrange(4)}"
        if name not in self.runner.loaded:
            self.versions[name] = f"weights {self.num_loads}"
            self.engine.load_adapter(name, self.versions[name])

    def unload(self) -> None:
        if self.versions:
            name = self.rng.choice(list(self.versions))
            del self.versions[name]
            self.engine.unload_adapter(name)

    def drain(self) -> None:
        for _ in range(10_000):
            if not self.engine.has_work:
                return
            self.step()
            self.engine.scheduler.check_integrity()
        pytest.fail("the engine does not come to an end")


def check_answers(walk: Walk) -> None:
    for asked in walk.asked.values():
        assert asked.end is not None, f"{asked.request.request_id} never ended"
        if asked.end.finish_reason == "error":
            assert asked.tokens == []
            continue
        prompt, params = asked.request.prompt_token_ids, asked.request.sampling
        tokens, reason = walk.runner.alone(prompt, params, content=asked.content)
        if asked.end.finish_reason == "cancel":
            assert asked.tokens == tokens[: len(asked.tokens)]
        else:
            assert (asked.tokens, asked.end.finish_reason) == (tokens, reason)


@pytest.mark.parametrize("seed", range(NUM_WALKS))
def test_walk(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(NUM_MOVES):
        walk.move()
    walk.drain()
    check_answers(walk)
    stats = walk.engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)
    assert set(walk.runner.loaded) == set(walk.versions)


def test_the_walks_see_what_they_are_for() -> None:
    """Preemption, prefix hits, chunks, refusals and every way to end must all have occurred."""
    num_preempted = num_hits = num_chunks = num_moved = num_evicted = 0
    ends: set[str | None] = set()
    for seed in range(40):
        walk = Walk(seed)
        for _ in range(NUM_MOVES):
            walk.move()
        stats = walk.engine.stats()
        num_preempted += stats.num_preempted
        num_hits += stats.num_prefix_hit_tokens
        num_chunks += sum(s.sample is None for b in walk.runner.batches for s in b.spans)
        num_moved += walk.runner.num_moved
        num_evicted += walk.runner.num_evicted
        for asked in walk.asked.values():
            if asked.end is not None:
                ends.add(asked.end.error_code or asked.end.finish_reason)
    assert num_preempted > 50
    assert num_hits > 200
    assert num_chunks > 50
    assert num_evicted > 1000
    assert num_moved > 1000  # tokens that a draft had right, behind others that were wrong
    assert ends == {"stop", "length", "cancel", "queue_full", "context_length_exceeded"}
