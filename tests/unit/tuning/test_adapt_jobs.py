"""What the adaptation loop orders becomes a draft job; what the job tells, an outcome."""

import pytest

from quickmatch.core.errors import NotFound
from quickmatch.store.documents import Job, JobState, Model, ModelKind
from quickmatch.store.protocol import require
from quickmatch.tuning import processes
from quickmatch.tuning.adapt_jobs import DraftOrder, StoredDraftJobs, outcome_of

ORDER = DraftOrder(
    model="tiny", trace_filter={"status": 200}, max_sequences=50, output_draft="tiny-draft"
)


@pytest.fixture
def spawned(monkeypatch):
    """Job processes that were asked for; none is started."""
    asked = []
    monkeypatch.setattr(processes, "spawn", lambda *arguments: asked.append(arguments) or 1 << 30)
    return asked


def test_an_order_becomes_a_started_job(store, home, base, spawned):
    head = Model(id="old", created_at=1.0, model_kind=ModelKind.DRAFT, base_model=base.id)
    store.insert(head)
    jobs = StoredDraftJobs(store, home)
    order = DraftOrder(
        model=base.id, trace_filter={"status": 200}, max_sequences=50, output_draft="tiny-draft",
        warm_start_from="old",
    )  # fmt: skip
    job = require(store, Job, jobs.begin(order))
    assert (job.job_type, job.base_model, job.output_model) == ("draft", "tiny", "tiny-draft")
    assert job.trace_filter == {"status": 200}
    assert (job.settings["max_sequences"], job.settings["warm_start_from"]) == (50, "old")
    assert [arguments[2] for arguments in spawned] == [job.id]
    assert jobs.find(job.id).state is JobState.INTERRUPTED  # there is no process of that number
    jobs.resume(job.id)
    assert len(spawned) == 2
    jobs.cancel(job.id)
    assert require(store, Job, job.id).state in (JobState.CANCELLED, JobState.CANCELLING)
    jobs.cancel(job.id)  # once more: quiet


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
