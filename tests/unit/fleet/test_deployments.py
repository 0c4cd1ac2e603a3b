"""The fleet makes what runs equal to what documents ask for, without failing a call."""

import asyncio
import os
import subprocess
import sys

import pytest

from quickmatch.core.errors import ModelLoadError, ModelNotFound, Unavailable
from quickmatch.fleet.ownership import is_alive, process_started_at
from quickmatch.store.adaptation import Adaptation, AdaptationEvent, HeadAdaptation
from quickmatch.store.documents import Deployment, DeploymentState, Model
from tests.unit.fleet.conftest import Harness


def deploy(harness: Harness, **fields: object) -> None:
    values = {"id": "tiny", "created_at": 1.0, "model": "tiny", **fields}
    harness.store.insert(Deployment(**values))  # type: ignore[arg-type]


async def test_metrics_tell_what_the_adaptation_loop_wrote(harness: Harness) -> None:
    deploy(harness, speculation={"adapt": True})
    await harness.until_state("READY")
    state = Adaptation(heads={"": HeadAdaptation(since=0.0, phase="watching")})
    state.record(AdaptationEvent(at=1.0, event="rolled_back"))
    harness.change(adaptation=state)

    def told() -> str:
        harness.fleet.report()
        return harness.fleet.metrics.render().decode()

    rollbacks = 'quickmatch_adaptation_events_total{deployment="tiny",event="rolled_back"} 1.0'
    await harness.until(lambda: rollbacks in told())
    assert 'adaptation_phase{adapter="",deployment="tiny",phase="watching"} 1.0' in told()
    harness.change(speculation={"adapt": False})
    await harness.until(lambda: "quickmatch_adaptation_phase{" not in told())
    assert 'quickmatch_adapters_loaded{deployment="tiny"}' in told()
    harness.change(wanted=False)
    await harness.until(lambda: 'deployment="tiny"' not in told())


async def test_a_deployment_is_started_and_its_document_says_so(harness: Harness) -> None:
    deploy(harness, trace=True)
    document = await harness.until_state("READY")
    assert (document.server_pid, document.url) == (os.getpid(), "http://test/v1")
    assert document.ready_at is not None
    route = harness.fleet.resolve("tiny")
    assert (route.version_id, route.adapter, route.trace) == ("tiny@1", None, True)
    assert harness.fleet.states() == {"tiny": "READY"}


async def test_unwanted_and_deleted_deployments_are_stopped(harness: Harness) -> None:
    deploy(harness)
    await harness.until_state("READY")
    harness.change(wanted=False)
    document = await harness.until_state("STOPPED")
    assert document.server_pid == 0
    assert harness.backends[0].log[-1] == "close"
    with pytest.raises(ModelNotFound):
        harness.fleet.resolve("tiny")
    harness.change(wanted=True)
    await harness.until_state("READY")
    harness.store.delete(Deployment, "tiny")
    await harness.until(lambda: harness.backends[1].log[-1] == "close")


async def test_changed_engine_settings_start_a_new_backend(harness: Harness) -> None:
    deploy(harness)
    await harness.until_state("READY")
    harness.change(engine={"max_num_seqs": 2})
    await harness.until(lambda: len(harness.backends) == 2)
    assert harness.backends[0].log[-1] == "close"
    await harness.until_state("READY")


async def test_only_the_engines_part_of_speculation_starts_a_new_backend(harness: Harness) -> None:
    deploy(harness)
    await harness.until_state("READY")
    harness.change(speculation={"adapt": True, "adapt_min_requests": 20})
    await asyncio.sleep(0.05)
    assert len(harness.backends) == 1
    harness.change(speculation={"adapt": True, "drafters": ["suffix", "head"]})
    await harness.until(lambda: len(harness.backends) == 2)


async def test_what_speculation_is_set_to_is_no_part_of_what_answers_are_cached_under(
    harness: Harness,
) -> None:
    deploy(harness)
    await harness.until_state("READY")
    before = harness.fleet.resolve("tiny").weights.fingerprint
    harness.change(speculation={"drafters": []})
    await harness.until(lambda: len(harness.backends) == 2)
    await harness.until_state("READY")
    assert harness.fleet.resolve("tiny").weights.fingerprint == before


async def test_a_model_that_cannot_be_loaded_is_failed_with_the_reason(harness: Harness) -> None:
    deploy(harness, model="nothing")
    document = await harness.until_state("FAILED")
    assert "no model named 'nothing'" in document.error
    assert harness.fleet.states()["tiny"].startswith("FAILED: no model")


async def test_a_failed_deployment_that_is_asked_for_again_is_tried_again(
    harness: Harness,
) -> None:
    deploy(harness, model="late")
    await harness.until_state("FAILED")
    late = Model(id="late", created_at=1.0, model_kind="base", path="/late")  # type: ignore[arg-type]
    harness.store.insert(late)
    await asyncio.sleep(0.05)
    assert harness.deployment().state == "FAILED"
    harness.change(state="PENDING", error="")
    await harness.until_state("READY")


async def test_an_unwanted_deployment_that_nobody_had_is_stopped_too(harness: Harness) -> None:
    deploy(harness, wanted=False)
    await harness.until_state("STOPPED")
    assert harness.backends == []


async def test_a_start_that_fails_for_now_is_tried_again(harness: Harness) -> None:
    deploy(harness)
    await harness.until_state("READY")
    harness.backends[0].start_errors = [Unavailable("not yet"), ModelLoadError("killed")]
    harness.backends[0].kill()
    await harness.until(lambda: harness.deployment().num_restarts == 3)
    await harness.until_state("READY")
    assert harness.backends[0].log == ["start"] * 4


async def test_a_fault_of_our_own_fails_one_deployment_not_the_fleet(harness: Harness) -> None:
    deploy(harness)
    await harness.until_state("READY")
    harness.backends[0].start_errors = [ZeroDivisionError()]  # type: ignore[list-item]
    harness.backends[0].kill()
    document = await harness.until_state("FAILED")
    assert "internal error" in document.error
    harness.change(state="PENDING")
    await harness.until_state("READY")
    assert len(harness.backends) == 2


async def test_death_makes_calls_unavailable_and_a_restart_mends_it(harness: Harness) -> None:
    deploy(harness)
    await harness.until_state("READY")
    harness.backends[0].kill()
    with pytest.raises(Unavailable):
        harness.fleet.resolve("tiny")
    await harness.until(lambda: harness.deployment().num_restarts == 1)
    await harness.until_state("READY")
    assert harness.fleet.resolve("tiny").version_id == "tiny@1"


async def test_a_new_version_is_loaded_before_the_old_one_goes(harness: Harness) -> None:
    deploy(harness, adapters={"red": 1})
    await harness.until_adapter("red", 1)
    old = harness.fleet.resolve("red")

    def train(model: Model) -> None:
        model.version, model.path = 2, "/models/red/2"

    harness.store.update(Model, "red", train)
    log = harness.backends[0].log
    with old.lease():
        harness.change(adapters={"red": 2})
        await harness.until_adapter("red", 2)
        assert harness.fleet.resolve("red").version_id == "red@2"
        await asyncio.sleep(0.05)
        assert log == ["start", "load red@1", "load red@2"]
    await harness.until(lambda: log[-1] == "unload red@1")
    assert harness.backends[0].loaded == {"red@2": "/models/red/2"}
    assert old.weights.fingerprint != harness.fleet.resolve("red").weights.fingerprint
    # And back again: the path of an older version lies beside the newest one's.
    harness.change(adapters={"red": 1})
    await harness.until_adapter("red", 1)
    await harness.until(lambda: harness.backends[0].loaded == {"red@1": "/models/red/1"})


async def test_an_adapter_no_longer_wanted_goes(harness: Harness) -> None:
    deploy(harness, adapters={"red": 1, "blue": 1})
    await harness.until_adapter("blue", 1)
    with harness.fleet.resolve("blue").lease():
        harness.change(adapters={"red": 1})
        await harness.until_adapter("blue", 1, "UNLOADING")
        with pytest.raises(ModelNotFound):
            harness.fleet.resolve("blue")
    await harness.until(lambda: harness.backends[0].log[-1] == "unload blue@1")
    await harness.until(lambda: list(harness.deployment().adapter_status) == ["red"])
    with pytest.raises(ModelNotFound):
        harness.fleet.resolve("blue")
    assert {m.name: m.parent for m in harness.fleet.list_models()} == {"tiny": None, "red": "tiny"}


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ({"nothing": 1}, "no model named 'nothing'"),
        ({"red": 9}, "no version 9; the newest is 1"),
        ({"tiny": 1}, "not an adapter"),
        ({"blue": 1}, "trained on 'other'"),
    ],
)
async def test_an_adapter_that_cannot_be_loaded_is_failed(
    harness: Harness, adapters: dict[str, int], words: str
) -> None:
    def move(model: Model) -> None:
        model.base_model = "other"

    harness.store.update(Model, "blue", move)
    deploy(harness, adapters=adapters)
    ((name, version),) = adapters.items()
    await harness.until_adapter(name, version, "FAILED")
    assert words in harness.deployment().adapter_status[name].error
    assert harness.deployment().state == DeploymentState.READY
    harness.change(adapters={})
    await harness.until(lambda: harness.deployment().adapter_status == {})


async def test_an_adapter_of_what_a_model_was_quantized_from_is_loaded(harness: Harness) -> None:
    harness.store.update(Model, "blue", lambda model: setattr(model, "base_model", "wide"))
    deploy(harness, adapters={"blue": 1})
    await harness.until_adapter("blue", 1, "FAILED")
    harness.store.update(Model, "tiny", lambda model: setattr(model, "quantized_from", "wide"))
    harness.change(adapter_status={})  # as when it is asked for again
    await harness.until_adapter("blue", 1)


async def test_a_failed_adapter_is_tried_again_when_its_status_is_taken_away(
    harness: Harness,
) -> None:
    deploy(harness)
    await harness.until_state("READY")
    harness.backends[0].load_errors["red@1"] = ModelLoadError("half copied")
    harness.change(adapters={"red": 1})
    await harness.until_adapter("red", 1, "FAILED")
    harness.backends[0].load_errors.clear()
    harness.change(adapter_status={})
    await harness.until_adapter("red", 1, "READY")


async def test_a_bad_new_version_leaves_the_old_one_serving(harness: Harness) -> None:
    deploy(harness, adapters={"red": 1})
    await harness.until_adapter("red", 1)
    harness.change(adapters={"red": 2})
    await harness.until_adapter("red", 2, "FAILED")
    assert harness.fleet.resolve("red").version_id == "red@1"


async def test_a_live_servers_deployment_is_left_alone_and_a_dead_ones_taken(
    harness: Harness,
) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started_at = process_started_at(other.pid)
    deploy(
        harness, server_pid=other.pid, state="READY", engine_info={"server_started_at": started_at}
    )
    await asyncio.sleep(0.15)
    assert harness.backends == []
    other.communicate()
    await harness.until(lambda: harness.deployment().server_pid == os.getpid())
    await harness.until_state("READY")


async def test_close_gives_deployments_back(harness: Harness) -> None:
    deploy(harness, adapters={"red": 1})
    await harness.until_adapter("red", 1)
    await harness.fleet.close()
    document = harness.deployment()
    assert (document.state, document.server_pid) == (DeploymentState.PENDING, 0)
    assert document.adapter_status == {}
    assert harness.backends[0].log[-1] == "close"


def test_a_process_id_that_was_taken_again_is_not_the_same_process() -> None:
    assert is_alive(os.getpid(), process_started_at(os.getpid()))
    assert not is_alive(os.getpid(), 12345)
    assert not is_alive(0)
