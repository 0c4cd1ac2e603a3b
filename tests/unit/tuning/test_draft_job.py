"""Draft jobs from inside: a tiny target answers, a head learns, the gate judges, data goes."""

import os
import re
import threading
from pathlib import Path

import pytest

from quickmatch.core.errors import Conflict, NotFound
from quickmatch.engine.speculation.head_folder import read_head
from quickmatch.observe import audit
from quickmatch.store.documents import (
    AuditRecord,
    Deployment,
    Job,
    JobState,
    JobStep,
    Model,
    ModelKind,
)
from quickmatch.tuning import draft_data, draft_job, job_process, jobs, processes
from quickmatch.tuning.draft_gate import Arm, Verdict, judge
from quickmatch.tuning.draft_settings import DraftSettings
from quickmatch.tuning.draft_train import DraftRun
from quickmatch.tuning.settings import SftSettings
from tests.unit.tuning.conftest import make_rows, write_rows

FAST = {
    "num_threads": 1, "batch_size": 4, "max_output_tokens": 12, "epochs": 3, "unroll_steps": 3,
    "learning_rate": 0.01, "dtype": "float32", "max_sequences": 28,
}  # fmt: skip
NUM_STEPS = 21  # 25 sequences to learn from, 7 steps an epoch


@pytest.fixture(autouse=True)
def _at_the_tests_own_priority(monkeypatch):
    monkeypatch.setenv("QUICKMATCH_JOB_NICENESS", "0")


@pytest.fixture
def let_in(monkeypatch):
    """Judge as if the head were the better one: speed on a tiny model is the machine's mood."""
    monkeypatch.setattr(draft_job, "judge", lambda _: Verdict(True, "it beats all"))


@pytest.fixture
def create(store, home, base, dataset):
    def make(output="head", **given):
        sources = ("dataset", "file", "trace_filter", "adapter")
        where = {name: given.pop(name) for name in sources if name in given}
        if not where.keys() & {"dataset", "file", "trace_filter"}:
            where["dataset"] = dataset.id
        return jobs.create_draft(
            store, home, model=base.id, output_draft=output,
            settings=DraftSettings.parse(FAST | given), **where,
        )  # fmt: skip

    return make


def claim(job):
    job.state, job.pid = JobState.RUNNING, os.getpid()
    job.pid_started_at = processes.started_at(os.getpid())


def run_here(store, home, job, stop=None):
    """Run the job in this process, as its own process would."""
    store.update(Job, job.id, claim)
    jobs.job_folder(home, job.id).mkdir(exist_ok=True)
    outcome = job_process._guarded(store, home, job.id, stop or threading.Event())
    job_process._settle(store, home, job.id, outcome)
    return store.get(Job, job.id)


def curve(store, job):
    return [(s.step, s.loss) for s in store.find(JobStep, {"job": job.id})]


def weights(store, name="head"):
    return read_head(Path(store.get(Model, name).path))[1]


def stop_after(monkeypatch, num_steps, act):
    """Let something happen behind a number of training steps."""
    real = DraftRun._step

    def step(run, sequences):
        real(run, sequences)
        if run.state.step == num_steps:
            act()

    monkeypatch.setattr(DraftRun, "_step", step)


@pytest.mark.usefixtures("let_in")
def test_a_job_learns_measures_publishes_and_forgets(store, home, create):
    job = run_here(store, home, create())
    assert (job.state, job.error) == (JobState.COMPLETED, "")
    losses = curve(store, job)
    assert [step for step, _ in losses] == list(range(1, NUM_STEPS + 1))
    assert losses[-1][1] < 0.9 * losses[0][1]
    assert all(s.acceptance is not None for s in store.find(JobStep, {"job": job.id}))
    model = store.get(Model, "head")
    assert (model.model_kind, model.version, model.base_model) == (ModelKind.DRAFT, 1, "tiny")
    assert Path(model.path) == home.models / "head" / "1"
    config, tensors = read_head(Path(model.path))
    assert config.draft_vocab_size == len(tensors["d2t"]) == job.metrics["draft_vocab_size"]
    gate = job.metrics["gate"]
    assert set(gate) == {"plain", "current", "new", "new_alone"}
    assert gate["plain"]["tokens_per_s"] > 0
    assert 0 <= gate["new"]["acceptance_rate"] <= 1
    assert gate["new"]["num_tokens"] == gate["plain"]["num_tokens"]
    assert job.metrics["passed"]
    assert job.metrics["message"] == "published as head@1: it beats all"
    # What was collected is gone, and the log says what it was.
    assert job.data_path == ""
    assert not (jobs.job_folder(home, job.id) / "data").exists()
    (record,) = store.find(AuditRecord)
    assert (record.action, record.subject, record.actor) == (
        "draft-data-deleted", job.id, f"job {job.id}",
    )  # fmt: skip
    assert record.detail["state"] == "COMPLETED"
    (file,) = record.detail["files"]
    assert (file["name"], file["num_lines"], len(file["sha256"])) == ("sequences.jsonl", 28, 64)
    assert audit.verify(store).holds


def test_a_head_that_does_not_beat_what_stands_is_not_published(store, home, create, monkeypatch):
    verdict = Verdict(False, "it does not beat plain decoding: 3 tokens/s to 4")
    monkeypatch.setattr(draft_job, "judge", lambda _: verdict)
    job = run_here(store, home, create())
    assert (job.state, job.metrics["passed"]) == (JobState.COMPLETED, False)
    assert job.metrics["message"] == (
        "not published: it does not beat plain decoding: 3 tokens/s to 4; --force publishes it "
        "anyway"
    )
    assert store.get(Model, "head") is None
    assert not home.models.joinpath("head").exists()
    assert list(jobs.job_folder(home, job.id).iterdir()) == []  # no checkpoint, and no head
    forced = run_here(store, home, create(force=True))
    assert (forced.metrics["passed"], forced.metrics["draft_version"]) == (False, "head@1")
    assert store.get(Model, "head").source_job == forced.id


@pytest.mark.parametrize(
    ("new", "current", "passed"),
    [
        ((90, 3.0), None, False),  # slower than plain
        ((110, 1.1), None, True),
        ((110, 3.0), (130, 3.5), False),
        ((128, 3.0), (130, 2.9), True),  # as fast, longer
        ((128, 2.8), (130, 2.9), False),
        ((140, 2.8), (130, 2.9), True),  # faster
        ((95, 3.0), (80, 2.0), False),  # better than the current one, which is slower than plain
    ],
)
def test_the_verdict(new, current, passed):
    arms = [Arm("plain", num_tokens=100, seconds=1.0)]
    for name, figures in (("current", current), ("new", new)):
        if figures:
            speed, length = figures
            arms.append(
                Arm(name, f"{name}@1", num_tokens=speed, seconds=1.0, accepted_length=length)
            )
    verdict = judge(arms)
    assert verdict.passed is passed
    assert f"{new[0]} tokens/s" in verdict.reason


@pytest.mark.usefixtures("let_in")
def test_the_deployed_head_stands_in_the_gate(store, home, create):
    run_here(store, home, create())
    store.insert(
        Deployment(id="live", created_at=1.0, model="tiny", drafts={"": "head@1", "other": "x@3"})
    )
    job = run_here(store, home, create(warm_start_from="head"))
    assert set(job.metrics["gate"]) == {"plain", "current", "new", "new_alone"}
    assert job.metrics["gate"]["current"]["draft"] == "head@1"
    assert store.get(Model, "head").version == 2


@pytest.mark.usefixtures("let_in")
def test_a_warm_start_goes_on_where_the_earlier_head_stood(store, home, create):
    first = run_here(store, home, create())
    more = run_here(store, home, create("second", warm_start_from="head", seed=1))
    assert curve(store, more)[0][1] < 0.5 * (curve(store, first)[0][1] + curve(store, first)[-1][1])


@pytest.mark.usefixtures("let_in")
def test_a_warm_start_takes_the_version_that_is_named(store, home, create):
    run_here(store, home, create())

    def add_version(model):
        model.version, model.path = 2, str(Path(model.path).with_name("2"))  # which cannot be read

    store.update(Model, "head", add_version)
    job = run_here(store, home, create("more", warm_start_from="head@1"))
    assert job.state == JobState.COMPLETED, job.error
    with pytest.raises(NotFound, match="no version '9'; the newest is 2"):
        create("other", warm_start_from="head@9")


@pytest.mark.usefixtures("let_in")
def test_an_interrupted_job_keeps_its_data_and_ends_like_one_that_ran_through(
    store, home, create, monkeypatch
):
    whole = run_here(store, home, create("whole"))
    job, stop = create("halted"), threading.Event()
    with monkeypatch.context() as patch:
        stop_after(patch, 9, stop.set)
        halted = run_here(store, home, job, stop)
    assert halted.state == JobState.INTERRUPTED
    assert draft_data.read_sequences(Path(halted.data_path)) is not None
    assert Path(halted.data_path).stat().st_mode & 0o077 == 0
    assert [s for s, _ in curve(store, job)] == list(range(1, 10))
    done = run_here(store, home, job)
    assert done.state == JobState.COMPLETED
    assert [s[1] for s in curve(store, done)] == pytest.approx(
        [s[1] for s in curve(store, whole)], abs=1e-5
    )
    expected, found = weights(store, "whole"), weights(store, "halted")
    assert all((expected[n] - found[n]).abs().max() < 1e-5 for n in ("fc.weight", "norm.weight"))
    assert done.data_path == ""


def test_a_cancelled_job_deletes_its_data_and_can_begin_again(
    store, home, create, monkeypatch, let_in
):
    assert let_in is None
    job = create()
    with monkeypatch.context() as patch:
        stop_after(patch, 5, lambda: jobs.cancel(store, job.id))
        cancelled = run_here(store, home, job)
    assert (cancelled.state, cancelled.data_path) == (JobState.CANCELLED, "")
    assert [r.detail["state"] for r in store.find(AuditRecord)] == ["CANCELLED"]
    assert store.get(Model, "head") is None
    again = run_here(store, home, job)  # the same sequences again, so the checkpoint fits
    assert again.state == JobState.COMPLETED
    assert again.metrics["num_steps"] == NUM_STEPS


def test_prompts_alone_are_answered_by_the_target(store, home, create, tmp_path, monkeypatch):
    rows = [{"messages": row["messages"][:1]} for row in make_rows(12)]
    file = write_rows(tmp_path / "prompts.jsonl", rows)
    kept = {}

    def stop_before_training(run):
        kept["train"] = run.train
        raise draft_job.Stopped

    monkeypatch.setattr(DraftRun, "run", stop_before_training)
    job = create(file=file, max_sequences=None)
    file.unlink()  # the rows were copied
    halted = run_here(store, home, job)
    assert halted.state == JobState.INTERRUPTED
    assert len(kept["train"]) == 10
    for sequence in kept["train"]:
        assert 2 <= len(sequence.output) <= 12
    names = sorted(p.name for p in Path(halted.data_path).iterdir())
    assert names == ["rows.jsonl", "sequences.jsonl"]
    # A job that ended has lost its copy, and says so.
    jobs.cancel(store, job.id)
    (record,) = store.find(AuditRecord)
    assert [f["name"] for f in record.detail["files"]] == names
    with pytest.raises(Conflict, match=r"copied from prompts.jsonl are deleted"):
        jobs.resume(store, home, job.id)


def test_the_adapter_speaks_and_the_head_is_for_it(store, home, create, base, dataset, let_in):
    assert let_in is None
    tuned = jobs.create_sft(
        store, home, base_model=base.id, dataset=dataset.id, output_model="tuned",
        settings=SftSettings.parse(
            {"num_threads": 1, "learning_rate": 0.02, "epochs": 4, "dtype": "float32"}
        ),
    )  # fmt: skip
    assert run_here(store, home, tuned).state == JobState.COMPLETED
    job = run_here(store, home, create(adapter="tuned"))
    assert (job.state, job.error) == (JobState.COMPLETED, "")
    assert job.metrics["target"] == "tuned@1"
    model = store.get(Model, "head")
    assert (model.adapter, model.base_model) == ("tuned", "tiny")
    with pytest.raises(Conflict, match="exists and is no draft of 'tiny'"):
        create()  # the base's own head needs another name


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"max_context_length": 16},
            "6 sequences to learn from, at least 8 are needed; .* 42 longer than",
        ),
        ({"max_context_length": 4096}, "max_context_length is 4096, but the target takes 128"),
        ({"draft_vocab_size": 5000}, "draft_vocab_size is 5000, but the target's vocabulary has"),
        ({"max_sequences": 4}, "4 sequences to learn from, at least 8 are needed"),
        ({"batch_size": 100, "epochs": 1}, ""),
    ],
)
def test_a_failed_job_says_why_and_keeps_nothing(store, home, create, settings, reason, let_in):
    assert let_in is None
    job = run_here(store, home, create(**settings))
    assert job.state == (JobState.FAILED if reason else JobState.COMPLETED)
    assert re.search(reason, job.error)
    assert "\n" not in job.error
    assert job.data_path == ""
    assert not (jobs.job_folder(home, job.id) / "data").exists()


def test_data_left_by_a_killed_job_is_swept(store, home, create):
    job = create()
    folder = draft_data.open_folder(store, home, job)
    (folder / draft_data.SEQUENCES).write_text('{"held":false,"prompt":[1],"output":[2,3]}\n')
    jobs.refresh(store)
    assert folder.exists()  # it has not ended
    store.update(Job, job.id, lambda j: setattr(j, "state", JobState.FAILED))
    jobs.refresh(store)
    assert not folder.exists()
    assert store.get(Job, job.id).data_path == ""
    jobs.refresh(store)
    assert store.count(AuditRecord) == 1  # once, however often one looks


def test_deleting_a_job_deletes_its_data_in_the_user_s_name(store, home, create, tmp_path):
    job = create(file=write_rows(tmp_path / "rows.jsonl", make_rows(9)), keep_data=True)
    store.update(Job, job.id, lambda j: setattr(j, "state", JobState.INTERRUPTED))
    jobs.delete(store, home, job.id)
    (record,) = store.find(AuditRecord)
    assert record.actor.startswith("user ")
    assert record.detail["source"] == "file:rows.jsonl"
    assert not jobs.job_folder(home, job.id).exists()
