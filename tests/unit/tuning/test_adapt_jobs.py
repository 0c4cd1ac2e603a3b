"""What the adaptation loop orders becomes a draft job; what the job tells, an outcome."""

import pytest

from quickmatch.core.errors import NotFound, Unavailable
from quickmatch.store.adaptation import Adaptation, HeadAdaptation
from quickmatch.store.documents import AuditRecord, Deployment, Job, JobState, Model, ModelKind
from quickmatch.store.protocol import require
from quickmatch.tuning import jobs, processes
from quickmatch.tuning.adapt_jobs import DraftOrder, StoredDraftJobs, outcome_of

ORDER = DraftOrder(
    model="tiny", deployment="", trace_filter={"status": 200}, max_sequences=50,
    output_draft="tiny-draft",
)  # fmt: skip


@pytest.fixture
def spawned(monkeypatch):
    """Job processes that were asked for; none is started."""
    asked = []
    monkeypatch.setattr(processes, "spawn", lambda *arguments: asked.append(arguments) or 1 << 30)
    return asked


def test_an_order_becomes_a_started_job(store, home, base, spawned):
    head = Model(id="old", created_at=1.0, model_kind=ModelKind.DRAFT, base_model=base.id)
    store.insert(head)
    for name in ("live", "other"):
        engine = {"quantization": "int8"} if name == "live" else {}
        store.insert(Deployment(id=name, created_at=1.0, model=base.id, engine=engine))
    orders = StoredDraftJobs(store, home)
    order = DraftOrder(
        model=base.id, deployment="live", trace_filter={"status": 200}, max_sequences=50,
        output_draft="tiny-draft", warm_start_from="old",
    )  # fmt: skip
    job = require(store, Job, orders.begin(order))
    assert (job.job_type, job.base_model, job.output_model) == ("draft", "tiny", "tiny-draft")
    assert job.trace_filter == {"status": 200}
    assert (job.deployment, job.engine) == ("live", {"quantization": "int8"})
    assert (job.settings["max_sequences"], job.settings["warm_start_from"]) == (50, "old")
    assert [arguments[2] for arguments in spawned] == [job.id]
    assert orders.find(job.id).state is JobState.INTERRUPTED  # there is no process of that number
    orders.resume(job.id)
    assert len(spawned) == 2
    orders.release(job.id)
    assert require(store, Job, job.id).state in (JobState.CANCELLED, JobState.CANCELLING)
    orders.release(job.id)  # once more: quiet


def versions_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.fixture
def heads(store, tmp_path):
    """The folder of seven versions of the head that is ordered."""
    for version in range(1, 8):
        (tmp_path / "heads" / str(version)).mkdir(parents=True)
    head = Model(
        id="tiny-draft", created_at=1.0, model_kind=ModelKind.DRAFT, base_model="tiny",
        version=7, path=str(tmp_path / "heads" / "7"),
    )  # fmt: skip
    store.insert(head)
    return tmp_path / "heads"


@pytest.mark.usefixtures("base", "spawned")
def test_an_imported_head_is_not_ours_to_delete(store, home, heads, tmp_path):
    imported = tmp_path / "imported"
    imported.mkdir()
    store.update(Model, "tiny-draft", lambda m: setattr(m, "elsewhere", {1: str(imported)}))
    orders = StoredDraftJobs(store, home)
    orders.release(orders.begin(ORDER))
    assert imported.is_dir()
    assert versions_in(heads) == [1, 5, 6, 7]


@pytest.mark.usefixtures("base", "spawned")
def test_of_old_heads_the_newest_few_stay_and_what_is_named(store, home, heads):
    orders = StoredDraftJobs(store, home)
    job_id = orders.begin(ORDER)
    back = HeadAdaptation(
        since=0.0, phase="watching", draft="tiny-draft@7", previous="tiny-draft@3"
    )
    state = Adaptation(heads={"": back})
    store.insert(
        Deployment(id="other", created_at=1.0, model="tiny", drafts={"": "tiny-draft@2"}),
        Deployment(
            id="live", created_at=1.0, model="tiny", drafts={"": "tiny-draft@7"}, adaptation=state
        ),
    )
    orders.release(job_id)
    assert versions_in(heads) == [2, 3, 5, 6, 7]  # 3: it is gone back to if 7 is worse
    orders.release(job_id)
    (record,) = store.find(AuditRecord)
    assert (record.action, record.subject) == ("draft-versions-deleted", "tiny-draft")
    assert (record.actor, record.detail) == (f"job {job_id}", {"versions": [1, 4]})
    orders.release("a job that was deleted")


@pytest.mark.usefixtures("base", "spawned")
def test_a_released_job_leaves_its_log_alone(store, home):
    orders = StoredDraftJobs(store, home)
    job_id = orders.begin(ORDER)
    folder = jobs.job_folder(home, job_id)
    (folder / "head").mkdir()
    for name in (jobs.CHECKPOINT, f"{jobs.CHECKPOINT}.partial", "log.txt"):
        (folder / name).touch()
    assert orders.find(job_id).state is JobState.INTERRUPTED
    orders.release(job_id)
    assert require(store, Job, job_id).state is JobState.CANCELLED
    assert [path.name for path in folder.iterdir()] == ["log.txt"]


@pytest.mark.usefixtures("base", "spawned")
def test_a_released_job_that_runs_keeps_what_it_works_on_until_it_has_ended(
    store, home, monkeypatch
):
    orders = StoredDraftJobs(store, home)
    job_id = orders.begin(ORDER)
    monkeypatch.setattr(processes, "is_alive", lambda *_: True)
    head = jobs.job_folder(home, job_id) / "head"
    head.mkdir()
    orders.release(job_id)
    assert require(store, Job, job_id).state is JobState.CANCELLING
    assert head.exists()


@pytest.mark.usefixtures("base")
def test_a_job_that_does_not_start_holds_no_name(store, home, monkeypatch):
    def refuse(*_):
        raise Unavailable("the store is locked")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "start", refuse)
        with pytest.raises(Unavailable):
            StoredDraftJobs(store, home).begin(ORDER)
    (job,) = store.find(Job)
    assert job.state is JobState.CANCELLED


@pytest.mark.usefixtures("base", "spawned")
def test_a_job_of_a_server_that_died_before_it_was_started_holds_no_name(store, home):
    StoredDraftJobs(store, home).begin(ORDER)
    (stale,) = store.find(Job)
    store.update(Job, stale.id, lambda job: setattr(job, "state", JobState.CREATED))
    StoredDraftJobs(store, home).begin(ORDER)
    assert require(store, Job, stale.id).state is JobState.CANCELLED


@pytest.mark.usefixtures("base", "spawned")
def test_a_training_whose_process_is_gone_is_waited_for_no_more(store, home):
    orders = StoredDraftJobs(store, home)
    orders.begin(ORDER)
    (job,) = store.find(Job)
    assert job.state is JobState.RUNNING  # and there is no process of that number
    assert not orders.is_any_running()


def test_what_cannot_be_ordered_is_refused(store, home):
    with pytest.raises(NotFound, match="no model named 'tiny'"):
        StoredDraftJobs(store, home).begin(ORDER)
    assert store.count(Job) == 0


def job_with(**metrics):
    return Job(
        id="j", created_at=1.0, job_type="draft", base_model="tiny", output_model="d",
        metrics=metrics,
    )  # fmt: skip


def test_a_jobs_metrics_become_an_outcome():
    gate = {
        "plain": {"draft": "", "tokens_per_s": 100.0, "num_tokens": 9},
        "current": {"draft": "d@1", "tokens_per_s": 150.0, "accepted_length": 2.0},
        "new": {"draft": "", "tokens_per_s": 153.0, "accepted_length": 2.5},
    }
    told = job_with(
        passed=True, gate=gate, draft_version="d@2", message="published as d@2", train_s=9.5
    )
    outcome = outcome_of(told)
    assert (outcome.draft, outcome.passed, outcome.message) == ("d@2", True, "published as d@2")
    assert outcome.gain == pytest.approx(0.25)
    assert outcome.figures == {
        "tokens_per_s": 153.0, "tokens_per_s_before": 150.0, "tokens_per_s_plain": 100.0,
        "accepted_length": 2.5, "accepted_length_before": 2.0, "train_s": 9.5,
    }  # fmt: skip


def test_a_head_that_was_not_published_has_no_version():
    gate = {"plain": {"tokens_per_s": 2.0}, "new": {"tokens_per_s": 1.0, "accepted_length": 1.5}}
    outcome = outcome_of(job_with(passed=False, gate=gate, message="not published"))
    assert (outcome.draft, outcome.passed, outcome.gain) == ("", False, None)
    assert outcome_of(job_with()).figures == {}
