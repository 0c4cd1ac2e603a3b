"""When memory runs out: the alarm, the refusal, and what goes on."""

import logging

import pytest

from quickmatch.core.sampling import SamplingParams
from quickmatch.engine.blocks import BlockAllocator, block_digest, root_digest
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.memory_watch import MemoryWatch
from quickmatch.engine.wire import Generate
from tests.unit.engine.fake_runner import FakeRunner

MIB = 1 << 20


def request(name: str, length: int = 9, token: int = 1, max_tokens: int = 6) -> Generate:
    params = SamplingParams(seed=7, max_tokens=max_tokens, ignore_eos=True)
    return Generate(request_id=name, prompt_token_ids=[token] * length, sampling=params)


def test_the_alarm_is_given_once_and_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    free, now = [300 * MIB], [0.0]
    watch = MemoryWatch(128 * MIB, lambda: free[0], clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        assert not watch.look()
        free[0] = 90 * MIB
        assert not watch.look()  # just looked
        for now[0] in (1.0, 2.0):
            assert watch.look()
        assert watch.words == (
            "90 MiB of memory are left, fewer than the 128 of engine.min_free_memory_bytes"
        )
        free[0], now[0] = 300 * MIB, 3.0
        assert not watch.look()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_new_requests_are_refused_and_others_run_on_one_after_the_other() -> None:
    runner, now = FakeRunner(), [0.0]
    engine = Engine(runner, EngineConfig(model="fake", max_num_seqs=1), clock=lambda: now[0])
    for name in ("running", "waiting"):
        assert engine.add(request(name)) is None
    engine.step()
    runner.free_bytes, now[0] = 5 * MIB, 1.0
    refused = engine.add(request("new"))
    assert refused is not None
    assert refused.error_code == "memory_low"
    assert refused.error is not None
    assert "5 MiB of memory are left" in refused.error
    assert engine.stats().is_memory_low
    ended = []
    while engine.has_work:
        ended += [t.request_id for t in engine.step() if t.finish_reason == "length"]
    assert ended == ["running", "waiting"]
    runner.free_bytes, now[0] = 1 << 40, 2.0
    assert engine.add(request("later")) is None
    assert not engine.stats().is_memory_low


def test_nothing_is_admitted_beside_what_runs() -> None:
    runner, now = FakeRunner(), [0.0]
    config = EngineConfig(model="fake", max_num_batched_tokens=9)
    engine = Engine(runner, config, clock=lambda: now[0])
    engine.add(request("first"))
    engine.add(request("second", length=8))
    engine.step()
    runner.free_bytes, now[0] = 0, 1.0
    engine.stats()
    while "first" in {s.request_id for s in engine.scheduler.running}:
        assert len(engine.scheduler.running) == 1
        engine.step()
    engine.step()
    assert [s.request_id for s in engine.scheduler.running] == ["second"]


def test_what_runs_goes_on_in_the_memory_that_it_has() -> None:
    runner, now = FakeRunner(), [0.0]
    engine = Engine(runner, EngineConfig(model="fake"), clock=lambda: now[0])
    blocks = engine.scheduler.blocks
    for i in range(4):
        engine.add(request(f"r{i}", length=4, token=i + 1, max_tokens=30))
    engine.step()
    runner.free_bytes, now[0] = 0, 1.0
    engine.stats()
    untouched = [blocks.num_free - blocks.num_cheap]
    num_alone = 0
    while engine.has_work:
        is_alone = len(engine.scheduler.running) <= 1
        engine.step()
        if not is_alone:
            untouched.append(blocks.num_free - blocks.num_cheap)
        num_alone += is_alone
    assert len(set(untouched)) == 1
    assert engine.stats().num_preempted > 0
    assert num_alone > 0  # the oldest is never held up


@pytest.mark.parametrize("is_frugal", [False, True])
def test_memory_that_is_taken_already_is_used_before_any_other(is_frugal: bool) -> None:
    blocks = BlockAllocator(8, 4)
    block = blocks.allocate()
    blocks.publish(block, block_digest(root_digest(0, ""), [1, 2, 3, 4]))
    blocks.release([block])
    blocks.is_frugal = is_frugal
    assert (blocks.allocate() == block) == is_frugal  # a content is lost, no page is taken
    assert blocks.allocate() != block
