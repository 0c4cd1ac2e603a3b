"""Jobs from outside: what is refused at creation, and every change of state."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from quickmatch.core.errors import ConfigError, Conflict, DatasetError, NotFound
from quickmatch.store.documents import Job, JobState, JobStep, Model, ModelKind
from quickmatch.tuning import jobs, processes
from quickmatch.tuning.settings import SftSettings


@pytest.fixture
def made(store, home, base, dataset):
    return jobs.create_sft(
        store, home, base_model=base.id, dataset=dataset.id, output_model="tuned"
    )


@pytest.fixture
def other_models(store, base):
    kinds = {"adapter": ModelKind.ADAPTER, "elsewhere": ModelKind.REMOTE, "gone": ModelKind.BASE}
    for name, kind in kinds.items():
        base_model = base.id if kind == ModelKind.ADAPTER else ""
        store.insert(
            Model(id=name, created_at=1.0, model_kind=kind, path="/nowhere", base_model=base_model)
        )


def set_state(store, job, state, **fields):
    def change(document):
        document.state = state
        for name, value in fields.items():
            setattr(document, name, value)

    return store.update(Job, job.id, change)


@pytest.mark.usefixtures("other_models", "dataset")
@pytest.mark.parametrize(
    ("changes", "settings", "error", "reason"),
    [
        ({"base_model": "nobody"}, {}, NotFound, "no model named 'nobody'; there are"),
        ({"base_model": ""}, {}, ConfigError, "no base model given"),
        ({"base_model": "adapter"}, {}, ConfigError, "is an adapter, not a base model"),
        ({"base_model": "elsewhere"}, {}, ConfigError, "remote provider"),
        ({"base_model": "gone"}, {}, ConfigError, "holds no config.json"),
        ({"dataset": "nothing"}, {}, NotFound, "no dataset named 'nothing'; there are: rows"),
        ({"evaluation_dataset": "nothing"}, {}, NotFound, "no dataset named 'nothing'"),
        ({"evaluation_dataset": "rows"}, {}, ConfigError, "is the training dataset"),
        ({"output_model": "a/b"}, {}, ConfigError, "not allowed"),
        ({"output_model": "tiny"}, {}, Conflict, "exists and is no adapter of 'tiny'"),
        ({}, {"early_stop": True}, ConfigError, "early_stop needs"),
        ({}, {"warm_start_from": "tiny"}, ConfigError, "is no adapter; use base_model"),
        ({"base_model": "gone"}, {"warm_start_from": "adapter"}, ConfigError, "trained on 'tiny'"),
    ],
)
def test_what_is_refused(store, home, changes, settings, error, reason):
    arguments = {"base_model": "tiny", "dataset": "rows", "output_model": "tuned"} | changes
    with pytest.raises(error, match=reason):
        jobs.create_sft(store, home, **arguments, settings=SftSettings.parse(settings))
    assert store.count(Job) == 0


def test_a_changed_dataset_is_refused(store, home, base, dataset):
    Path(dataset.path).write_text("{}\n")
    with pytest.raises(DatasetError, match="was changed"):
        jobs.create_sft(store, home, base_model=base.id, dataset="rows", output_model="tuned")


def test_one_job_a_name_at_a_time(store, home, made):
    with pytest.raises(Conflict, match=rf"job {made.id} \(CREATED\) will write 'tuned' too"):
        jobs.create_sft(store, home, base_model="tiny", dataset="rows", output_model="tuned")
    set_state(store, made, JobState.FAILED)
    jobs.create_sft(store, home, base_model="tiny", dataset="rows", output_model="tuned")
    with pytest.raises(Conflict, match="will write 'tuned' too"):
        jobs.resume(store, home, made.id)


@pytest.mark.usefixtures("other_models", "dataset")
def test_warm_start_takes_the_adapters_base(store, home):
    settings = SftSettings(warm_start_from="adapter")
    job = jobs.create_sft(store, home, dataset="rows", output_model="adapter", settings=settings)
    assert job.base_model == "tiny"


@pytest.fixture
def sleeper(monkeypatch):
    """Processes that sleep in place of jobs."""
    running = []

    def spawn(*_):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        running.append(process)
        return process.pid

    monkeypatch.setattr(processes, "spawn", spawn)
    yield running
    for process in running:
        process.kill()
        process.wait()


def test_start_refuses_what_runs(store, home, made, sleeper):
    started = jobs.start(store, home, made.id)
    assert (started.state, started.pid) == (JobState.RUNNING, sleeper[0].pid)
    for again in (jobs.start, jobs.resume):
        with pytest.raises(Conflict, match=f"job {made.id} is RUNNING; only"):
            again(store, home, made.id)
    with pytest.raises(Conflict, match="cancel it first"):
        jobs.delete(store, home, made.id)
    assert jobs.refresh(store) == []
    assert len(sleeper) == 1


def test_a_dead_process_is_noticed_and_may_be_resumed(store, home, made, sleeper):
    jobs.start(store, home, made.id)
    sleeper[0].kill()
    *_, last = jobs.watch(store, made.id, poll_s=0.01)
    assert last.state == JobState.INTERRUPTED
    assert f"process {sleeper[0].pid} died; resume" in last.error
    resumed = jobs.resume(store, home, made.id)
    assert (resumed.state, resumed.num_resumes, resumed.error) == (JobState.RUNNING, 1, "")
    assert resumed.pid == sleeper[1].pid


def test_a_pid_taken_again_is_not_the_job(store, home, made, sleeper):
    job = jobs.start(store, home, made.id)
    assert processes.is_alive(job.pid, job.pid_started_at)
    set_state(store, job, JobState.RUNNING, pid_started_at=job.pid_started_at - 1)
    (lost,) = jobs.refresh(store)
    assert lost.state == JobState.INTERRUPTED
    assert sleeper[0].poll() is None


def test_a_process_that_never_came_up(store, made):
    now = time.time()
    set_state(store, made, JobState.RUNNING, heartbeat_at=now - 5)
    assert jobs.refresh(store) == []
    set_state(store, made, JobState.RUNNING, heartbeat_at=now - 500)
    assert jobs.refresh(store)[0].state == JobState.INTERRUPTED


def test_cancel_in_every_state(store, home, made, sleeper):
    jobs.start(store, home, made.id)
    assert jobs.cancel(store, made.id).state == JobState.CANCELLING
    assert jobs.cancel(store, made.id).state == JobState.CANCELLING
    sleeper[0].kill()
    assert jobs.wait(store, made.id, poll_s=0.01).state == JobState.CANCELLED
    with pytest.raises(Conflict, match="has ended already: CANCELLED"):
        jobs.cancel(store, made.id)
    set_state(store, made, JobState.INTERRUPTED)
    assert jobs.cancel(store, made.id).state == JobState.CANCELLED
    set_state(store, made, JobState.CREATED)
    assert jobs.cancel(store, made.id).finished_at is not None


def test_a_process_that_cannot_start(store, home, made, monkeypatch):
    def refuse(*_):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(processes, "spawn", refuse)
    job = jobs.start(store, home, made.id)
    assert job.state == JobState.FAILED
    assert "could not be started: [Errno 12] Cannot allocate memory" in job.error


def test_delete_takes_steps_and_folder_along(store, home, made):
    folder = jobs.job_folder(home, made.id)
    folder.mkdir()
    store.insert(JobStep(id=f"{made.id}/00000001", created_at=1.0, job=made.id, step=1))
    set_state(store, made, JobState.COMPLETED)
    jobs.delete(store, home, made.id)
    assert not folder.exists()
    assert store.count(Job) == store.count(JobStep) == 0


def test_the_command_lines_imports_load_no_torch():
    code = (
        "import sys, quickmatch.tuning.jobs, quickmatch.tuning.datasets, "
        "quickmatch.tuning.settings, quickmatch.tuning.evaluation; "
        "sys.exit(bool({'torch', 'transformers', 'peft', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
