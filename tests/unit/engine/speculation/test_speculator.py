"""What the speculator does by itself: timing steps at the start, and whom a head is told of."""

import pytest

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.speculation.config import SpeculationConfig
from quickmatch.engine.speculation.kept_rows import DraftRequest
from quickmatch.engine.speculation.model_use import ModelPlan
from quickmatch.engine.speculation.tree import DraftTree
from quickmatch.engine.wire import Generate
from tests.unit.engine.fake_runner import FakeRunner
from tests.unit.engine.speculation.simulation import cpu_cost


class NoisyMachine(FakeRunner):
    """Whose steps take half as long again in every other stretch of 40 steps."""

    num_timed = 0

    def time_step(self, num_seqs: int, num_rows: int) -> float:
        self.num_timed += 1
        slow = 1.5 if self.num_timed // 40 % 2 else 1.0
        return slow * cpu_cost(num_seqs, num_rows)


def test_steps_are_timed_beside_each_other() -> None:
    # Guards: rows that seem dear because another process ran while they were timed.
    config = EngineConfig(model="fake", speculation=SpeculationConfig(calibration_s=60.0))
    engine = Engine(NoisyMachine(), config)
    assert engine.speculator is not None
    engine.speculator.measure_costs(32)
    costs = engine.speculator._costs
    for num_seqs, num_rows in ((1, 2), (1, 8), (8, 16), (8, 64), (32, 64)):
        ratio = costs.step_s(num_seqs, num_rows) / costs.plain_s(1)
        true = cpu_cost(num_seqs, num_rows) / cpu_cost(1, 1)
        assert abs(ratio / true - 1) < 0.1, (num_seqs, num_rows)


class WithHead(FakeRunner):
    """Has a model drafter for whoever is watched; it drafts nothing."""

    def draft(self, requests: list[DraftRequest], **_: object) -> list[DraftTree]:
        return [DraftTree() for _ in requests]

    def can_draft(self, adapter_row: int, *, is_watched: bool) -> bool:  # noqa: ARG002
        return is_watched


def test_a_head_in_use_may_end_a_rest_with_every_new_request() -> None:
    # Guards: a head that a rest has made deaf, since of new requests it is told of one in sixteen.
    engine = Engine(WithHead(), EngineConfig(model="fake"))
    speculator = engine.speculator
    assert speculator is not None
    controller = speculator._controller
    controller._model.is_on = True
    controller._rests.is_resting = True

    def is_watched(name: str) -> bool:
        params = SamplingParams(max_tokens=4)
        engine.add(Generate(request_id=name, prompt_token_ids=[1, 2], sampling=params))
        found = engine.scheduler.find(name)
        assert found is not None
        return found.is_watched

    speculator._num_to_watch = 0
    controller._rests._saved = 1.0  # looks are paid for
    assert is_watched("a")
    controller._rests.is_resting = True
    controller._rests._saved = -1.0
    assert not is_watched("b")


def ask(engine: Engine, name: str, max_tokens: int = 4) -> bool:
    """Have a request come; return whether a head is told of it."""
    params = SamplingParams(max_tokens=max_tokens)
    engine.add(Generate(request_id=name, prompt_token_ids=[1, 2], sampling=params))
    found = engine.scheduler.find(name)
    assert found is not None
    return found.is_watched


def watched_of(engine: Engine, count: int) -> list[int]:
    """Let so many requests come and go at once; return which of them a head was told of."""
    places = []
    for place in range(count):
        if ask(engine, f"request {place}"):
            places.append(place)
        engine.cancel(f"request {place}")
    return places


def test_calls_that_come_by_turns_are_all_met() -> None:
    # Guards: every sixteenth request watched, which is always the same caller of four.
    engine = Engine(WithHead(), EngineConfig(model="fake"))
    assert engine.speculator is not None
    engine.speculator._num_to_watch = 0
    engine.speculator._controller._rests.is_resting = True
    engine.speculator._controller._rests._saved = -100.0
    places = watched_of(engine, 1200)
    assert 4 <= len(places) <= 16
    for num_turns in (2, 3, 4, 5):
        assert {place % num_turns for place in places} == set(range(num_turns)), places


def test_a_head_that_was_in_use_is_told_of_the_next_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Guards: one call that does not suit it, and the head misses those that do.
    engine = Engine(WithHead(), EngineConfig(model="fake"))
    assert engine.speculator is not None
    controller = engine.speculator._controller
    controller._model.is_on = True
    engine.speculator._num_to_watch = 0
    assert ask(engine, "drafted for", max_tokens=8)

    def plan(ids: list[int], *_: object, **__: object) -> ModelPlan:
        return ModelPlan(tuple(ids), 1, 1, 1)

    monkeypatch.setattr(controller, "wants_model", plan)
    while engine.has_work:
        engine.step()
    engine.speculator._num_unwatched = 0
    controller._model.is_on = False
    assert watched_of(engine, 12) == list(range(8))


def test_past_outputs_are_drafted_from_only_under_the_same_isolation_key() -> None:
    # Guards: how soon an answer comes tells what another key's caller was answered.
    speculation = SpeculationConfig(is_adaptive=False)
    engine = Engine(FakeRunner(), EngineConfig(model="fake", speculation=speculation))
    prompt = list(range(1, 10))

    def num_drafted(name: str, key: str) -> int:
        """Run the same request under a key; return how many tokens past outputs proposed."""
        before = _num_from_past_outputs(engine)
        engine.add(
            Generate(
                request_id=name,
                prompt_token_ids=prompt,
                sampling=SamplingParams(seed=1, max_tokens=12, ignore_eos=True),
                isolation_key=key,
            )
        )
        while engine.has_work:
            output.extend(token for event in engine.step() for token in event.token_ids)
        return _num_from_past_outputs(engine) - before

    output: list[int] = []
    assert num_drafted("a", "mine") == 0
    assert num_drafted("b", "yours") == 0
    assert num_drafted("c", "") == 0
    assert num_drafted("d", "mine") > 0
    engine.remember("", None, [[*prompt[-8:], *output[:12]]], isolation_key="restored")
    assert num_drafted("e", "restored") > 0


def _num_from_past_outputs(engine: Engine) -> int:
    assert engine.speculator is not None
    return engine.speculator.stats().sources["suffix_global"].num_proposed
