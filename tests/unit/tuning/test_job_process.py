"""Jobs from inside: real training of a tiny model, killed, resumed, stopped, failed."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from quickmatch.core import files
from quickmatch.store.documents import Job, JobState, JobStep, Model
from quickmatch.tuning import datasets, job_process, jobs, processes
from quickmatch.tuning.checkpoint import Checkpoint, save_checkpoint
from quickmatch.tuning.settings import SftSettings
from tests.unit.tuning.conftest import make_rows, write_rows

FAST = {"num_threads": 1, "batch_size": 4, "learning_rate": 0.01, "dtype": "float32"}


@pytest.fixture(autouse=True)
def _at_the_tests_own_priority(monkeypatch):
    monkeypatch.setenv("QUICKMATCH_JOB_NICENESS", "0")


@pytest.fixture
def create(store, home, base, dataset):
    def make(output="tuned", *, evaluation="", dataset="rows", **settings):
        return jobs.create_sft(
            store, home, base_model=base.id, dataset=dataset, output_model=output,
            evaluation_dataset=evaluation, settings=SftSettings.parse(FAST | settings),
        )  # fmt: skip

    assert dataset.num_rows == 48
    return make


@pytest.fixture
def held(store, home, tmp_path):
    file = write_rows(tmp_path / "held.jsonl", make_rows(8, seed=9))
    return datasets.create_from_file(store, home, "held", file)


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
    return [(s.step, s.loss, s.eval_loss) for s in store.find(JobStep, {"job": job.id})]


def test_a_job_learns_and_publishes(store, home, create, held):
    job = run_here(store, home, create(evaluation="held", epochs=3, eval_every=6))
    assert (job.state, job.error) == (JobState.COMPLETED, "")
    steps = curve(store, job)
    assert [s[0] for s in steps] == list(range(37))  # 0 is the evaluation before training
    assert [s[0] for s in steps if s[2] is not None] == [0, 6, 12, 18, 24, 30, 36]
    assert steps[-1][1] < 0.95 * steps[1][1]
    assert job.metrics["eval_loss"] < job.metrics["eval_loss_before"]
    assert job.metrics["num_steps"] == job.progress.step == job.progress.total_steps == 36
    assert job.progress.epoch == 3.0
    model = store.get(Model, "tuned")
    assert (model.version, model.base_model, model.source_job) == (1, "tiny", job.id)
    assert Path(model.path) == home.models / "tuned" / "1"
    assert model.size_bytes == sum(f.stat().st_size for f in Path(model.path).iterdir())
    assert held.num_rows == 8


def test_training_again_makes_the_next_version(store, home, create):
    first = run_here(store, home, create(epochs=2))
    job = run_here(store, home, create(warm_start_from="tuned"))
    model = store.get(Model, "tuned")
    assert (model.version, model.source_job) == (2, job.id)
    assert sorted(p.name for p in (home.models / "tuned").iterdir()) == ["1", "2"]
    assert curve(store, job)[0][1] < curve(store, first)[0][1] - 0.2  # it went on


def test_peft_loads_the_adapter_and_merging_keeps_the_logits(store, home, create, base):
    from quickmatch.tuning.load import attach_adapter, load_base

    run_here(store, home, create(epochs=2))
    loaded = load_base(base.path, dtype="float32")
    ids = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = loaded.model(ids).logits
        tuned = attach_adapter(loaded, store.get(Model, "tuned").path).model.eval()
        with_adapter = tuned(ids).logits
        merged = tuned.merge_and_unload()(ids).logits
    assert (with_adapter - plain).abs().max() > 0.1
    assert torch.allclose(with_adapter, merged, atol=1e-4)


def test_kill_9_and_resume_ends_like_a_run_that_was_never_killed(store, home, create):
    settings = {"epochs": 30, "checkpoint_every": 7, "lora_dropout": 0.1}
    whole = run_here(store, home, create("whole", **settings))
    job = create("killed", **settings)
    jobs.start(store, home, job.id)
    path = jobs.job_folder(home, job.id) / jobs.CHECKPOINT
    while not path.exists():  # by the file: its progress is written once a second
        time.sleep(0.002)
    pid = store.get(Job, job.id).pid
    # Where memory runs out Linux ends it, and not the engine beside it.
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
    os.kill(pid, signal.SIGKILL)
    seen = jobs.wait(store, job.id, poll_s=0.02)
    assert seen.state == JobState.INTERRUPTED
    assert seen.progress.step < 360
    assert store.get(Model, "killed") is None
    jobs.resume(store, home, job.id)
    job = jobs.wait(store, job.id)
    log = jobs.log_path(home, job.id).read_text()
    assert (job.state, job.num_resumes) == (JobState.COMPLETED, 1), log
    assert "resuming after step" in log
    deadline = time.monotonic() + 20
    while path.exists():  # until the process ends: nothing can go on from it any more
        assert time.monotonic() < deadline
        time.sleep(0.01)
    expected, found = curve(store, whole), curve(store, job)
    assert [s[0] for s in found] == [s[0] for s in expected] == list(range(1, 361))
    assert [s[1] for s in found] == pytest.approx([s[1] for s in expected], abs=1e-5)
    assert "Warning" not in log


def test_sigterm_writes_a_checkpoint_and_interrupts(store, home, create):
    stop = threading.Event()
    stop.set()
    job = run_here(store, home, create(epochs=2), stop)
    assert job.state == JobState.INTERRUPTED
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    job = run_here(store, home, create("other", epochs=1000), stop)
    assert job.state == JobState.INTERRUPTED
    saved = jobs.CHECKPOINT
    assert (jobs.job_folder(home, job.id) / saved).exists()


def test_cancel_between_steps_and_resume(store, home, create):
    job = create(epochs=1000)

    def cancel_soon():
        while store.count(JobStep, {"job": job.id}) == 0:
            time.sleep(0.01)
        jobs.cancel(store, job.id)

    canceller = threading.Thread(target=cancel_soon)
    canceller.start()
    done = run_here(store, home, job)
    canceller.join()
    assert done.state == JobState.CANCELLED
    assert 0 < done.progress.step < 12_000
    assert store.get(Model, "tuned") is None
    steps = [s[0] for s in curve(store, job)]
    assert steps == list(range(1, done.progress.step + 1))


def test_early_stop_keeps_the_best(store, home, create, held):
    job = run_here(
        store, home,
        create(evaluation=held.id, epochs=200, eval_every=4, early_stop=True, learning_rate=0.05),
    )  # fmt: skip
    assert job.state == JobState.COMPLETED
    assert job.metrics["stopped_early"]
    assert job.metrics["num_steps"] < 200 * 12
    evals = [s[2] for s in curve(store, job) if s[2] is not None]
    assert job.metrics["best_eval_loss"] == min(evals[1:])

    import numpy as np

    from quickmatch.tuning.perplexity import perplexity

    found = perplexity(
        store.get(Model, "tiny").path, datasets.read_rows(held),
        adapter_path=store.get(Model, "tuned").path, dtype="float32",
    )  # fmt: skip
    assert np.log(found.value) == pytest.approx(min(evals[1:]), abs=1e-4)
    assert found.low < found.value < found.high


def test_a_full_disk_fails_with_the_reason_and_resumes(store, home, create, monkeypatch):
    whole = run_here(store, home, create("whole", epochs=2))
    job = create(epochs=2, checkpoint_every=5)
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        failed = run_here(store, home, job)
    assert failed.state == JobState.FAILED
    assert "disk full" in failed.error
    assert f"resume job {job.id}" in failed.error
    folder = jobs.job_folder(home, job.id)
    assert [p.name for p in folder.iterdir()] == [jobs.CHECKPOINT]
    again = run_here(store, home, job)
    assert again.state == JobState.COMPLETED
    assert curve(store, again)[-1] == pytest.approx(curve(store, whole)[-1])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_context_length": 16}, "none of its 48 rows fits 16 tokens"),
        ({"max_context_length": 4096}, "positions end at 128; lower it"),
        ({"target_modules": ["nothing_proj"]}, "target_modules do not fit the base model"),
        ({"learning_rate": 1.0, "max_grad_norm": 1e9, "epochs": 30}, "the loss is nan"),
    ],
)
def test_a_failed_job_says_why(store, home, create, settings, reason, monkeypatch):
    if "nan" in reason:
        from quickmatch.tuning import sft

        weighted_sums = sft.weighted_sums
        monkeypatch.setattr(
            sft, "weighted_sums", lambda m, b: (weighted_sums(m, b)[0] * float("nan"), 1.0)
        )
    job = run_here(store, home, create(**settings))
    assert job.state == JobState.FAILED
    assert reason in job.error
    assert "\n" not in job.error
    assert store.get(Model, "tuned") is None


def test_a_wrong_niceness_fails_the_job(store, home, create, monkeypatch):
    monkeypatch.setenv("QUICKMATCH_JOB_NICENESS", "-5")
    failed = run_here(store, home, create())
    assert "QUICKMATCH_JOB_NICENESS is '-5'; set a whole number" in failed.error


def test_a_dataset_changed_after_creation_fails_the_job(store, home, create, dataset):
    job = create()
    Path(dataset.path).write_text("{}\n")
    failed = run_here(store, home, job)
    assert (failed.state, "was changed after" in failed.error) == (JobState.FAILED, True)


def test_a_checkpoint_of_another_run_is_refused(store, home, create):
    job = create()
    folder = jobs.job_folder(home, job.id)
    folder.mkdir(parents=True)
    save_checkpoint(folder, Checkpoint(1, "another", {}, {}, torch.get_rng_state()))
    failed = run_here(store, home, job)
    assert "is of other data or settings" in failed.error


def test_publishing_twice_changes_nothing(store, home, create):
    job = run_here(store, home, create())
    model = store.get(Model, "tuned")
    again = run_here(store, home, job)  # as after a crash between publishing and COMPLETED
    assert again.state == JobState.COMPLETED
    assert store.get(Model, "tuned") == model


def test_carve_out(store, home, create):
    job = run_here(store, home, create(eval_auto_carveout=True))
    assert job.metrics["num_rows_carved_out"] == 5
    assert job.metrics["eval_loss"] is not None


def test_gradient_accumulation_is_a_larger_batch(store, home, create):
    big = run_here(store, home, create("big", batch_size=8))
    small = run_here(store, home, create("small", batch_size=4, gradient_accumulation_steps=2))
    assert len(curve(store, big)) == len(curve(store, small)) == 6
    assert curve(store, small)[0][1] == pytest.approx(curve(store, big)[0][1], rel=0.1)
