"""What the speculator does by itself: timing steps at the start, and whom a head is told of."""

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.speculation.config import SpeculationConfig
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
