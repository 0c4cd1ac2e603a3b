"""Heads follow what the document wants; serving never waits for one and never fails by one."""

import asyncio

import pytest

from quickmatch.core.errors import ModelLoadError
from quickmatch.store.documents import DeploymentState, Model
from tests.unit.fleet.conftest import Harness
from tests.unit.fleet.test_deployments import deploy


async def test_a_head_goes_live_with_its_timings(harness: Harness) -> None:
    deploy(harness, drafts={"": "head@2"})
    status = await harness.until_draft("head@2")
    assert harness.backends[0].drafts == {"": "head@2"}
    assert (status.swap_s, status.adapter) == (0.002, "")
    assert status.load_s is not None
    assert status.ready_at is not None


async def test_an_older_version_takes_its_place_and_lies_beside(harness: Harness) -> None:
    deploy(harness, drafts={"": "head@2"})
    await harness.until_draft("head@2")
    harness.change(drafts={"": "head@1"})
    await harness.until_draft("head@1")
    log = harness.backends[0].log
    assert log == [
        "start",
        "draft head@2 for base from /models/head/2",
        "draft head@1 for base from /models/head/1",
    ]


async def test_a_head_no_longer_wanted_goes(harness: Harness) -> None:
    deploy(harness, drafts={"": "head@2"})
    await harness.until_draft("head@2")
    harness.change(drafts={})
    await harness.until(lambda: harness.deployment().draft_status == {})
    assert harness.backends[0].drafts == {}


async def test_an_adapters_head_is_loaded_for_the_version_that_is_live(harness: Harness) -> None:
    deploy(harness, adapters={"red": 1}, drafts={"red": "head@2"})
    status = await harness.until_draft("head@2", adapter="red")
    assert status.adapter == "red@1"

    def train(model: Model) -> None:
        model.version, model.path = 2, "/models/red/2"

    harness.store.update(Model, "red", train)
    harness.change(adapters={"red": 2})
    await harness.until(lambda: harness.backends[0].drafts == {"red@2": "head@2"})
    harness.change(adapters={})
    await harness.until_draft("head@2", "FAILED", adapter="red")
    assert harness.backends[0].drafts == {}
    assert "load-lora it first" in harness.deployment().draft_status["red"].error


async def test_a_restarted_engine_gets_its_heads_again(harness: Harness) -> None:
    deploy(harness, drafts={"": "head@2"})
    await harness.until_draft("head@2")
    backend = harness.backends[0]
    backend.kill()
    assert backend.drafts == {}
    await harness.until(lambda: backend.drafts == {"": "head@2"})
    await harness.until_draft("head@2")


async def test_one_that_cannot_be_loaded_leaves_the_one_before_it_drafting(
    harness: Harness,
) -> None:
    deploy(harness, drafts={"": "head@1"})
    await harness.until_draft("head@1")
    backend = harness.backends[0]
    backend.load_errors["head@2"] = ModelLoadError("fc.weight is missing")
    harness.change(drafts={"": "head@2"})
    status = await harness.until_draft("head@2", "FAILED")
    assert status.error == "fc.weight is missing"
    assert backend.drafts == {"": "head@1"}
    assert harness.deployment().state == DeploymentState.READY
    assert harness.fleet.resolve("tiny").version_id == "tiny@1"
    # Back to the one that stands: its document says so again.
    harness.change(drafts={"": "head@1"})
    await harness.until_draft("head@1")
    assert [line for line in backend.log if line.startswith("draft")] == [
        "draft head@1 for base from /models/head/1"
    ]
    # And the other one once more: tried again, since it was asked for anew.
    backend.load_errors.clear()
    harness.change(drafts={"": "head@2"})
    await harness.until_draft("head@2")


async def test_a_failed_head_is_tried_again_when_its_status_is_taken_away(
    harness: Harness,
) -> None:
    deploy(harness)
    await harness.until_state("READY")
    harness.backends[0].load_errors["head@2"] = ModelLoadError("half copied")
    harness.change(drafts={"": "head@2"})
    await harness.until_draft("head@2", "FAILED")
    harness.backends[0].load_errors.clear()
    await asyncio.sleep(0.05)
    assert harness.deployment().draft_status[""].state == "FAILED"
    harness.change(draft_status={})
    await harness.until_draft("head@2")


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        ("head", "is not NAME@VERSION"),
        ("head@x", "is not NAME@VERSION"),
        ("nothing@1", "no model named 'nothing'"),
        ("red@1", "of kind adapter, not a draft"),
        ("head@3", "no version 3; the newest is 2"),
        ("other@1", "trained for 'huge'"),
    ],
)
async def test_what_cannot_be_a_head_here_is_failed_with_the_reason(
    harness: Harness, draft: str, words: str
) -> None:
    other = Model(id="other", created_at=1.0, model_kind="draft", base_model="huge", path="/o/1")  # type: ignore[arg-type]
    harness.store.insert(other)
    deploy(harness, drafts={"": draft})
    status = await harness.until_draft(draft, "FAILED")
    assert words in status.error


async def test_a_head_that_the_engine_keeps_dying_with_is_left_out(harness: Harness) -> None:
    deploy(harness, drafts={"": "head@2"})
    backend = None
    for _ in range(3):
        await harness.until_draft("head@2")
        backend = harness.backends[0]
        await harness.until(lambda: harness.backends[0].drafts == {"": "head@2"})
        backend.kill()
    status = await harness.until_draft("head@2", "FAILED")
    assert "died 3 times in a row" in status.error
    assert backend is not None
    assert backend.drafts == {}
    assert harness.deployment().state == DeploymentState.READY
    harness.change(draft_status={})
    await harness.until_draft("head@2")
