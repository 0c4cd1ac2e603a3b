"""The adaptation loop over a real store, with jobs and an engine's report made by the test."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quickmatch.core.errors import ConfigError, Conflict
from quickmatch.core.settings import Home
from quickmatch.store.adaptation import HeadAdaptation
from quickmatch.store.documents import (
    Deployment,
    DraftStatus,
    Job,
    JobState,
    Model,
    ModelKind,
    Trace,
)
from quickmatch.store.open import open_store
from quickmatch.store.protocol import Store, require
from quickmatch.tuning.adapt import NEEDS_ANSWERS, NEEDS_REPORT, NEEDS_TRACES, AdaptationLoop
from quickmatch.tuning.adapt_jobs import DraftOrder

GATE = {
    "plain": {"tokens_per_s": 100.0},
    "current": {"tokens_per_s": 150.0, "accepted_length": 2.0},
    "new": {"tokens_per_s": 160.0, "accepted_length": 3.0},
}
PASSED = {"passed": True, "gate": GATE, "message": "it beats what stands", "train_s": 12.5}
ADAPT = {
    "adapt": True,
    "adapt_min_requests": 20,
    "adapt_watch_requests": 10,
    "adapt_interval_s": 60,
}


@dataclass
class FakeJobs:
    """Jobs that end when the test says so."""

    store: Store
    orders: list[DraftOrder] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    error: ConfigError | None = None
    resume_error: Conflict | None = None

    def begin(self, order: DraftOrder) -> str:
        if self.error is not None:
            raise self.error
        self.orders.append(order)
        id = f"draftj-{len(self.orders)}"
        job = Job(
            id=id, created_at=1.0, job_type="draft", base_model=order.model, dataset="",
            output_model=order.output_draft, state=JobState.RUNNING,
            settings={"warm_start_from": order.warm_start_from},
        )  # fmt: skip
        self.store.insert(job)
        return id

    def find(self, job_id: str) -> Job | None:
        return self.store.get(Job, job_id)

    def is_any_running(self) -> bool:
        return self.store.count(Job, {"state": "RUNNING"}) > 0

    def resume(self, job_id: str) -> None:
        if self.resume_error is not None:
            raise self.resume_error
        self.resumed.append(job_id)
        self.end(JobState.RUNNING)

    def release(self, job_id: str) -> None:
        self.released.append(job_id)

    def end(self, state: JobState, **metrics: Any) -> None:
        def change(job: Job) -> None:
            job.state, job.metrics = state, metrics

        self.store.update(Job, f"draftj-{len(self.orders)}", change)


def _add(report: dict[str, Any], counts: dict[str, float]) -> None:
    for name, value in counts.items():
        report[name] = report.get(name, 0) + value


@dataclass
class World:
    """A deployment, its traffic, its engine and the loop, all moved by the test."""

    store: Store
    jobs: FakeJobs
    loop: AdaptationLoop = field(init=False)
    now: float = 1000.0
    num_traces: int = 0
    report: dict[str, Any] = field(default_factory=lambda: {"num_drifts": 0})

    def __post_init__(self) -> None:
        self.restart_server()

    def restart_server(self) -> None:
        self.loop = AdaptationLoop(self.store, self.jobs, clock=lambda: self.now)

    @property
    def deployment(self) -> Deployment:
        return require(self.store, Deployment, "live")

    def head(self, name: str = "") -> HeadAdaptation:
        return self.deployment.adaptation.heads[name]

    def events(self) -> list[str]:
        return [event.event for event in self.deployment.adaptation.events]

    def change(self, **fields: Any) -> None:
        def apply(document: Deployment) -> None:
            for name, value in fields.items():
                setattr(document, name, value)

        self.store.update(Deployment, "live", apply)

    def look(self, after_s: float = 1.0) -> None:
        self.now += after_s
        self.loop.look()

    def traffic(
        self, calls: int, *, accepted: int = 2, speed_up: float = 2.0, **fields: Any
    ) -> None:
        """Calls come: recorded, and told by the engine. accepted: of 4 drafted tokens a forward."""
        for _ in range(calls):
            self.num_traces += 1
            self.now += 0.001
            values = {
                "id": f"t{self.num_traces}", "trace_id": "t", "created_at": self.now,
                "tenant": "default", "endpoint": "chat", "model": "tiny", "deployment": "live",
                "model_version": "tiny@1", "request": {}, "usage": {"completion_tokens": 20},
                **fields,
            }  # fmt: skip
            self.store.insert(Trace(**values))
        forwards, version = 10 * calls, fields.get("model_version", "tiny@1")
        counts = {
            "num_verified": forwards, "num_proposed": 4 * forwards,
            "num_accepted": accepted * forwards, "num_emitted": (accepted + 1) * forwards,
        }  # fmt: skip
        _add(self.report, counts)
        _add(self.report, {"busy_s": 0.1 * forwards, "plain_s": 0.1 * forwards * speed_up})
        _add(self.of("" if version == "tiny@1" else version), counts)
        self.tell()

    def of(self, version: str) -> dict[str, Any]:
        """What the engine tells of the sequences of an adapter, "" for the base model's."""
        return self.report.setdefault("adapters", {}).setdefault(version, {"num_drifts": 0})

    def drift(self, version: str = "") -> None:
        self.report["num_drifts"] += 1
        self.of(version)["num_drifts"] += 1
        self.tell()

    def tell(self, pid: int = 7) -> None:
        self.change(engine_info={"pid": pid, "stats": {"speculation": deepcopy(self.report)}})

    def load(self, state: str = "READY", name: str = "") -> None:
        """The fleet follows what is wanted."""
        draft = self.deployment.drafts[name]
        error = "it is broken" if state == "FAILED" else ""
        status = DraftStatus(draft=draft, state=state, error=error, load_s=0.2, swap_s=0.003)  # type: ignore[arg-type]
        self.change(draft_status={**self.deployment.draft_status, name: status})

    def train(self, version: int = 1, **metrics: Any) -> None:
        """From enough calls to a head that is wanted."""
        self.traffic(20)
        self.look()
        assert self.head().phase == "training"
        told = {**PASSED, "draft_version": f"live-draft@{version}", **metrics}
        self.jobs.end(JobState.COMPLETED, **told)
        self.look()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = open_store(Home(tmp_path))
    store.insert(
        Model(id="tiny", created_at=1.0, model_kind=ModelKind.BASE),
        Deployment(
            id="live", created_at=1.0, model="tiny", trace=True, state="READY", speculation=ADAPT
        ),  # type: ignore[arg-type]
    )
    made = World(store, FakeJobs(store))
    made.tell()
    made.look()
    yield made
    store.close()


def test_enough_new_calls_are_learnt_from(world: World) -> None:
    world.traffic(19)
    world.look()
    assert (world.head().phase, world.head().num_new) == ("collecting", 19)
    world.traffic(1)
    world.look()
    (order,) = world.jobs.orders
    assert (order.model, order.adapter, order.output_draft) == ("tiny", "", "live-draft")
    assert order.deployment == "live"
    assert (order.warm_start_from, order.max_sequences) == ("", 2000)
    assert world.store.count(Trace, order.trace_filter) == 20
    assert world.events() == ["collecting", "training"]


def test_calls_that_cannot_be_learnt_from_do_not_count(world: World) -> None:
    world.traffic(20, status=500)
    world.traffic(20, cache="hit")
    world.traffic(20, usage={"completion_tokens": 1})
    world.traffic(20, model_version="tiny@2")
    world.traffic(20, deployment="other")
    world.look()
    assert world.head().num_new == 0


def test_completions_count_like_chats(world: World) -> None:
    world.traffic(10)
    world.traffic(10, endpoint="completion")
    world.look()
    assert world.head().phase == "training"


def test_a_better_head_goes_live_is_watched_and_kept(world: World) -> None:
    world.train()
    assert world.deployment.drafts == {"": "live-draft@1"}
    world.look()
    assert world.head().phase == "swapping"
    world.load("LOADING")
    world.look()
    assert world.head().phase == "swapping"
    world.load()
    world.look()
    assert world.head().phase == "watching"
    world.traffic(9, accepted=3, speed_up=2.6)
    world.look()
    assert world.head().phase == "watching"
    world.traffic(1, accepted=3, speed_up=2.6)
    world.look()
    assert (world.head().phase, world.deployment.drafts) == ("collecting", {"": "live-draft@1"})
    assert world.events() == ["collecting", "training", "gated", "swapped", "kept"]
    kept = world.deployment.adaptation.events[-1]
    assert kept.draft == "live-draft@1"
    assert kept.figures == {
        "hit_rate": 0.75, "accepted_length": 4.0, "speed_up": 2.6,
        "hit_rate_before": 0.5, "accepted_length_before": 3.0, "speed_up_before": 2.0,
    }  # fmt: skip
    swapped = world.deployment.adaptation.events[-2]
    assert swapped.figures == {"load_s": 0.2, "swap_s": 0.003}


def test_the_next_one_starts_from_the_one_that_stands_on_newer_calls(world: World) -> None:
    world.train()
    world.load()
    world.look()
    world.traffic(10, speed_up=2.5)
    world.look()
    assert world.head().phase == "collecting"
    world.traffic(9)
    world.look(after_s=100)
    assert world.head().num_new == 19  # all that came since the training began
    world.traffic(1)
    world.look()
    assert world.jobs.orders[-1].warm_start_from == "live-draft@1"


@pytest.mark.parametrize("previous", ["", "live-draft@1"])
def test_a_worse_head_is_rolled_back_to_what_stood_before(world: World, previous: str) -> None:
    drafts = {"": previous} if previous else {}
    world.change(drafts=drafts)
    world.train(version=2)
    world.load()
    world.look()
    world.traffic(10, accepted=3, speed_up=1.5)  # foretells more, and yet is slower
    world.look()
    assert world.deployment.drafts == drafts
    assert world.events()[-1] == "rolled_back"
    event = world.deployment.adaptation.events[-1]
    assert "speed-up 1.50, before 2.00" in event.text
    assert event.draft == "live-draft@2"
    assert world.head().num_refusals == 1
    world.traffic(20)
    world.look(after_s=1000)
    assert world.jobs.orders[-1].warm_start_from == previous  # not from the newest


def test_a_head_that_cannot_be_loaded_is_taken_back(world: World) -> None:
    world.change(drafts={"": "old@4"})
    world.train()
    world.load("FAILED")
    world.look()
    assert world.deployment.drafts == {"": "old@4"}
    assert world.deployment.adaptation.events[-1].text == "it is broken"


@pytest.mark.parametrize(
    "metrics",
    [
        {"passed": False, "draft_version": None},
        {"passed": False},  # published by force
        {"gate": {**GATE, "new": {"tokens_per_s": 154.0, "accepted_length": 2.02}}},
    ],
)
def test_what_does_not_pass_the_gate_is_not_swapped_in(
    world: World, metrics: dict[str, Any]
) -> None:
    world.train(**metrics)
    assert (world.deployment.drafts, world.head().phase) == ({}, "collecting")
    assert world.events()[-1] == "gated"
    assert "refused" in world.deployment.adaptation.events[-1].text
    assert world.jobs.released == ["draftj-1"]


def test_a_first_head_needs_no_gain_over_another(world: World) -> None:
    world.train(gate={"plain": GATE["plain"], "new": GATE["new"]})
    assert world.deployment.drafts == {"": "live-draft@1"}
    assert world.deployment.adaptation.events[-1].figures == {
        "tokens_per_s": 160.0, "tokens_per_s_plain": 100.0, "accepted_length": 3.0, "train_s": 12.5,
    }  # fmt: skip


def test_what_an_earlier_head_spoils_is_begun_afresh(world: World) -> None:
    world.change(drafts={"": "old@4"})
    world.traffic(20)
    world.look()
    assert world.jobs.orders[-1].warm_start_from == "old@4"
    world.jobs.end(JobState.FAILED)
    world.look()
    world.traffic(20)
    world.look(after_s=1000)
    assert world.jobs.orders[-1].warm_start_from == ""
    world.jobs.end(JobState.COMPLETED, passed=False)
    world.look()
    world.traffic(20)
    world.look(after_s=1000)
    assert world.jobs.orders[-1].warm_start_from == "old@4"


def test_each_refusal_doubles_the_pause(world: World) -> None:
    pauses = []
    for number in range(1, 5):
        world.traffic(20)
        began = world.now
        while len(world.jobs.orders) < number:
            world.look(after_s=20)
        pauses.append(world.now - began)
        world.jobs.end(JobState.COMPLETED, passed=False)
        world.look()
    assert pauses[0] == pytest.approx(20, abs=1)
    for number, pause in enumerate(pauses[1:], start=1):
        assert pause == pytest.approx(60 * 2**number, abs=21)


def test_trainings_are_no_nearer_than_the_interval(world: World) -> None:
    world.train()
    world.load()
    world.look()
    world.traffic(30, speed_up=2.5)
    world.look()
    assert world.events()[-1] == "kept"
    world.look(after_s=30)
    assert len(world.jobs.orders) == 1
    world.look(after_s=30)
    assert len(world.jobs.orders) == 2


def test_a_drift_is_answered_by_fewer_calls_that_came_since(world: World) -> None:
    world.traffic(12)
    world.look()
    world.drift()
    world.look()
    assert world.events() == ["collecting", "drift"]
    world.traffic(7, accepted=1)
    world.look()
    assert world.jobs.orders == []
    world.traffic(1, accepted=1)
    world.look()
    (order,) = world.jobs.orders
    assert world.store.count(Trace, order.trace_filter) == 8
    assert world.deployment.adaptation.events[-1].text == "after a drift"
    # What came before the drift is not what the new head is compared with.
    world.jobs.end(JobState.COMPLETED, **PASSED, draft_version="live-draft@1")
    world.look()
    assert world.head().before.num_emitted == 8 * 20


def test_a_drift_that_is_over_by_itself_trains_nothing(world: World) -> None:
    world.traffic(12)
    world.look()
    world.drift()
    world.look()
    world.traffic(8)  # the suffix index knows the new traffic already
    world.look()
    assert (world.jobs.orders, world.head().drifted_at) == ([], None)
    assert world.deployment.adaptation.events[-1].text == "over without a training"
    world.look()
    assert (world.head().num_new, world.head().phase) == (20, "training")


def test_a_drift_is_not_held_up_by_refusals_but_by_the_interval(world: World) -> None:
    for _ in range(3):
        world.traffic(20)
        world.look(after_s=1000)
        world.jobs.end(JobState.COMPLETED, passed=False)
        world.look()
    assert world.head().not_before > world.now + 400
    world.drift()
    world.look()
    world.traffic(8, accepted=1)
    world.look(after_s=30)
    assert len(world.jobs.orders) == 3
    world.look(after_s=30)
    assert len(world.jobs.orders) == 4


def test_a_drift_while_watching_keeps_the_newer_head(world: World) -> None:
    world.train()
    world.load()
    world.look()
    world.traffic(10, accepted=0, speed_up=0.5)
    world.drift()
    world.look()
    assert world.events()[-2:] == ["drift", "kept"]
    assert world.deployment.drafts == {"": "live-draft@1"}
    assert world.head().drifted_at is not None


def test_an_engine_that_starts_again_does_not_confuse_the_sums(world: World) -> None:
    world.train()
    world.load()
    world.look()
    world.traffic(5, speed_up=2.5)
    world.look()
    world.report = {"num_drifts": 0}
    world.tell(pid=8)
    world.look()
    world.traffic(5, speed_up=2.5)
    world.tell(pid=8)
    world.look()
    assert world.events()[-1] == "kept"
    assert world.deployment.adaptation.events[-1].figures["speed_up"] == pytest.approx(2.5)


def test_a_server_that_starts_again_goes_on_where_the_last_one_stopped(world: World) -> None:
    world.traffic(20)
    world.look()
    world.restart_server()
    world.look()
    assert len(world.jobs.orders) == 1
    world.jobs.end(JobState.COMPLETED, **PASSED, draft_version="live-draft@1")
    world.restart_server()
    world.look()
    world.load()
    world.restart_server()
    world.look()
    world.traffic(10)
    world.restart_server()
    world.look()
    assert world.events() == ["collecting", "training", "gated", "swapped", "kept"]


def test_an_interrupted_job_is_resumed_and_given_up_in_the_end(world: World) -> None:
    world.traffic(20)
    world.look()
    for _ in range(3):
        world.jobs.end(JobState.INTERRUPTED)
        world.look()
        assert world.head().phase == "training"
    assert world.jobs.resumed == ["draftj-1"] * 3
    world.jobs.end(JobState.INTERRUPTED)
    world.look()
    assert (world.head().phase, world.events()[-1]) == ("collecting", "failed")
    assert world.jobs.released == ["draftj-1"]  # its data goes


def test_an_interrupted_job_that_cannot_go_on_is_released(world: World) -> None:
    world.traffic(20)
    world.look()
    world.jobs.end(JobState.INTERRUPTED)
    world.jobs.resume_error = Conflict("job draftj-9 will write 'live-draft' too")
    world.look()
    assert world.events()[-1] == "failed"
    assert world.jobs.released == ["draftj-1"]


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_a_job_that_comes_to_nothing_is_told(world: World, state: JobState) -> None:
    world.traffic(20)
    world.look()
    world.jobs.end(state)
    world.look()
    assert world.events()[-1] == "failed"
    assert world.head().num_refusals == 1


def test_a_job_that_cannot_be_made_or_is_deleted_is_told(world: World) -> None:
    world.jobs.error = ConfigError("install quickmatch[tune]")
    world.traffic(20)
    world.look()
    assert world.deployment.adaptation.events[-1].text == "install quickmatch[tune]"
    world.jobs.error = None
    world.traffic(20)
    world.look(after_s=200)
    assert world.head().phase == "training"
    world.jobs.end(JobState.FAILED)
    world.look()
    world.jobs.error = ConfigError("install quickmatch[tune]")
    world.traffic(20)
    world.look(after_s=1000)
    assert world.deployment.adaptation.events[-1].job == ""  # not the one that failed before
    world.jobs.error = None
    world.traffic(20)
    world.look(after_s=1000)
    world.store.delete(Job, "draftj-2")
    world.look()
    assert "deleted" in world.deployment.adaptation.events[-1].text


def test_adapters_have_heads_of_their_own_one_training_at_a_time(world: World) -> None:
    world.change(adapters={"red": 2}, drafts={"": "old@1"})
    world.traffic(20)
    world.traffic(20, model_version="red@2")
    world.look()
    assert world.head("red").num_new == 0  # it began to collect just now
    world.traffic(20, model_version="red@2")
    world.look()
    assert [o.adapter for o in world.jobs.orders] == [""]
    world.jobs.end(JobState.COMPLETED, passed=False)
    world.look()
    order = world.jobs.orders[-1]
    assert (order.adapter, order.output_draft) == ("red", "live-red-draft")
    assert order.warm_start_from == "old@1"
    assert world.store.count(Trace, order.trace_filter) == 40
    told = {**PASSED, "draft_version": "live-red-draft@1"}
    world.jobs.end(JobState.COMPLETED, **told)
    world.look()
    assert world.deployment.drafts == {"": "old@1", "red": "live-red-draft@1"}


def with_two_adapters(world: World) -> None:
    """Both have traffic; the first's new head goes live."""
    world.change(adapters={"red": 2, "blue": 1})
    world.look()
    world.traffic(15, model_version="blue@1")
    world.traffic(20, model_version="red@2")
    world.look()
    assert world.jobs.orders[-1].adapter == "red"
    told = {**PASSED, "draft_version": "live-red-draft@1"}
    world.jobs.end(JobState.COMPLETED, **told)
    world.look()
    world.load(name="red")
    world.look()
    assert world.head("red").phase == "watching"


@pytest.mark.parametrize("accepted", [1, 3])
def test_a_head_is_judged_by_the_traffic_of_its_adapter(world: World, accepted: int) -> None:
    """Guards: a bad head that hides behind another's good one, a good one blamed for another's."""
    with_two_adapters(world)
    other = 4 - accepted
    world.traffic(30, model_version="blue@1", accepted=other, speed_up=float(other))
    world.look()
    assert world.head("red").phase == "watching"  # nothing is known of its own calls yet
    world.traffic(10, model_version="red@2", accepted=accepted, speed_up=2.0)
    world.look()
    event = next(e for e in world.deployment.adaptation.events[::-1] if e.head == "red")
    assert event.event == ("kept" if accepted == 3 else "rolled_back")
    assert event.text == f"accepted length {accepted + 1}.00, before 3.00"


def test_a_head_whose_adapter_is_not_asked_for_does_not_keep_others_waiting(world: World) -> None:
    with_two_adapters(world)
    world.traffic(199, model_version="blue@1")
    world.look()
    assert world.head("red").phase == "watching"
    world.traffic(1, model_version="blue@1")
    world.look()
    assert world.head("red").phase == "collecting"
    event = next(e for e in world.deployment.adaptation.events[::-1] if e.head == "red")
    assert (event.event, event.text) == ("kept", "too little was decoded to compare")


def test_a_drift_of_one_adapters_traffic_is_no_news_for_the_others(world: World) -> None:
    world.change(adapters={"red": 2, "blue": 1})
    world.look()
    world.traffic(15, model_version="blue@1")
    world.traffic(15, model_version="red@2")
    world.look()
    world.drift("red@2")
    world.look()
    assert world.head("red").drifted_at is not None
    assert world.head("blue").drifted_at is world.head().drifted_at is None
    world.traffic(8, model_version="red@2", accepted=0)
    world.look()
    order = world.jobs.orders[-1]
    assert order.adapter == "red"
    assert world.store.count(Trace, order.trace_filter) == 8


def test_only_the_base_models_head_on_request(world: World) -> None:
    """It drafts for all, so all traffic is its own."""
    world.change(adapters={"red": 2}, speculation={**ADAPT, "per_adapter_heads": False})
    world.look()
    assert list(world.deployment.adaptation.heads) == [""]
    world.traffic(10, model_version="red@2")
    world.drift("red@2")
    world.look()
    assert world.head().drifted_at is not None


def test_an_adapter_that_is_taken_off_takes_its_training_along(world: World) -> None:
    world.change(adapters={"red": 2})
    world.look()
    world.traffic(20, model_version="red@2")
    world.look()
    assert world.head("red").phase == "training"
    world.change(adapters={})
    world.look()
    assert list(world.deployment.adaptation.heads) == [""]
    assert world.jobs.released == ["draftj-1"]


def test_another_draft_job_is_waited_for(world: World) -> None:
    by_hand = Job(
        id="by-hand", created_at=1.0, job_type="draft", base_model="tiny", output_model="x",
        state=JobState.RUNNING,
    )  # fmt: skip
    world.store.insert(by_hand)
    world.traffic(20)
    world.look()
    assert world.jobs.orders == []
    world.store.delete(Job, "by-hand")
    world.look()
    assert len(world.jobs.orders) == 1


def test_a_head_changed_by_hand_is_left_alone(world: World) -> None:
    world.train()
    world.load()
    world.look()
    world.change(drafts={"": "mine@1"})
    world.traffic(10, speed_up=0.5)
    world.look()
    assert world.deployment.drafts == {"": "mine@1"}
    assert "by hand" in world.deployment.adaptation.events[-1].text


def test_turned_off_it_cancels_what_it_began_and_leaves_what_is_live(world: World) -> None:
    world.traffic(20)
    world.look()
    world.change(speculation={})
    world.look()
    assert world.jobs.released == ["draftj-1"]
    assert world.head().phase == "collecting"
    revision = world.deployment.revision
    world.traffic(20)
    world.look()
    assert len(world.jobs.orders) == 1
    assert world.deployment.revision == revision + 1  # the traffic's own write alone


def test_it_says_what_is_missing(world: World) -> None:
    world.change(trace=False)
    world.look()
    assert world.deployment.adaptation.note == NEEDS_TRACES
    world.traffic(3)  # some callers asked for it themselves
    world.look()
    assert world.deployment.adaptation.note == ""
    world.change(engine_info={"pid": 7, "stats": {}})  # no word yet
    world.look()
    assert world.deployment.adaptation.note == ""
    world.change(engine_info={"pid": 7, "stats": {"num_steps": 1, "speculation": None}})
    world.look()
    assert world.deployment.adaptation.note == NEEDS_REPORT


@pytest.mark.parametrize("trace", [True, False])
def test_it_says_where_no_call_can_be_learnt_from(world: World, trace: bool) -> None:
    world.change(trace=trace)
    world.traffic(3, deployment="other")
    world.look()
    assert world.deployment.adaptation.note == ("" if trace else NEEDS_TRACES)
    world.traffic(3, cache="hit")
    world.look()
    assert world.deployment.adaptation.note == NEEDS_ANSWERS
    world.traffic(1)
    world.look()
    assert world.deployment.adaptation.note == ""


def test_nothing_is_written_where_nothing_changed(world: World) -> None:
    revision = world.deployment.revision
    for _ in range(3):
        world.look()
    assert world.deployment.revision == revision


def test_wrong_settings_of_one_do_not_stop_the_others(world: World) -> None:
    broken = Deployment(
        id="broken", created_at=0.5, model="tiny", state="READY", speculation={"adopt": 1}
    )  # type: ignore[arg-type]
    world.store.insert(broken)
    world.traffic(20)
    world.look()
    assert len(world.jobs.orders) == 1


def test_the_history_is_bounded(world: World) -> None:
    for _ in range(60):
        world.traffic(20)
        world.look(after_s=10_000)
        if world.head().phase == "training":
            world.jobs.end(JobState.COMPLETED, passed=False)
            world.look()
    assert len(world.events()) == 50
