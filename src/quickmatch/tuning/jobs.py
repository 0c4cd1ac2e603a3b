"""Background jobs: create, start, watch, cancel, resume, delete. Loads no torch.

Owns the states of jobs, seen from outside their process (`job_process` is the inside).

    CREATED ─start─▶ RUNNING ─▶ COMPLETED | FAILED
                      │   ▲
       cancel ─▶ CANCELLING ─▶ CANCELLED     process gone ─▶ INTERRUPTED
                          └──resume── FAILED, CANCELLED, INTERRUPTED

Invariant: a job document exists only if everything it names existed and fitted when it was made.
"""

import contextlib
import shutil
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from quickmatch.core.clock import wall
from quickmatch.core.errors import ConfigError, Conflict
from quickmatch.core.ids import new_id
from quickmatch.core.settings import Home
from quickmatch.store.documents import Dataset, Job, JobState, JobStep, Model, ModelKind
from quickmatch.store.protocol import Store, require
from quickmatch.tuning import draft_data, processes
from quickmatch.tuning.datasets import verify
from quickmatch.tuning.draft_jobs import create_draft as create_draft
from quickmatch.tuning.draft_jobs import user
from quickmatch.tuning.job_checks import check_base, check_output
from quickmatch.tuning.settings import SftSettings

_ACTIVE = (JobState.RUNNING, JobState.CANCELLING)
_RESUMABLE = (JobState.INTERRUPTED, JobState.FAILED, JobState.CANCELLED)
_START_GRACE_S = 60.0  # from RUNNING to the process writing its pid
CHECKPOINT = "checkpoint.pt"
HEAD = "head"  # a draft job's, on its way to the gate


def create_sft(
    store: Store,
    home: Home,  # noqa: ARG001 - where the job will work; every function here takes it
    *,
    base_model: str = "",
    dataset: str,
    output_model: str,
    evaluation_dataset: str = "",
    settings: SftSettings | None = None,
) -> Job:
    """Check everything, then write the job's document. It is not started.

    base_model may be left out with `warm_start_from`: the adapter's base is taken.
    Raises NotFound, ConfigError, DatasetError or Conflict; nothing is created then.
    """
    chosen = settings or SftSettings.parse({})
    base = _base(store, base_model, chosen.warm_start_from)
    _check_data(store, dataset, evaluation_dataset, chosen)
    job = Job(
        id=new_id("sftj"),
        created_at=wall(),
        base_model=base.id,
        dataset=dataset,
        evaluation_dataset=evaluation_dataset,
        output_model=output_model,
        settings=chosen.model_dump(mode="json"),
    )
    check_output(store, job)
    store.insert(job)
    return job


def start(store: Store, home: Home, job_id: str) -> Job:
    """Start a new job's process. Raises Conflict if it was started before."""
    return _launch(store, home, job_id, (JobState.CREATED,), "started")


def resume(store: Store, home: Home, job_id: str) -> Job:
    """Go on from the last checkpoint, or from the start where there is none yet.

    Raises Conflict unless the job is INTERRUPTED, FAILED or CANCELLED, or if its output name
    was taken meanwhile.
    """
    refresh(store)
    job = require(store, Job, job_id)
    check_output(store, job)
    if job.file and not job.data_path:
        raise Conflict(
            f"job {job_id} has ended and the rows that it copied from {job.file} are deleted; "
            "create the job again"
        )
    return _launch(store, home, job_id, _RESUMABLE, "resumed")


def cancel(store: Store, job_id: str) -> Job:
    """Ask a job to end after its current step; a job that does not run ends at once.

    Raises Conflict if it has ended already.
    """
    refresh(store)
    require(store, Job, job_id)

    def change(job: Job) -> None:
        if job.state.is_final:
            raise Conflict(f"job {job.id} has ended already: {job.state}")
        job.state = JobState.CANCELLING if job.state in _ACTIVE else JobState.CANCELLED
        if job.state == JobState.CANCELLED:
            job.finished_at = wall()

    job = store.update(Job, job_id, change)
    if job.state == JobState.CANCELLED:
        draft_data.sweep(store)
    return job


def refresh(store: Store) -> list[Job]:
    """Set jobs whose process is gone to INTERRUPTED (or CANCELLED, if asked); return them.

    Data that jobs ended without deleting is deleted.
    """
    lost = []
    for job in store.find(Job, {"state": {"$in": [s.value for s in _ACTIVE]}}):
        if not _is_lost(job):
            continue

        def change(job: Job) -> None:
            if job.state not in _ACTIVE or not _is_lost(job):
                return  # it ended by itself, or was resumed, just now
            asked = job.state == JobState.CANCELLING
            job.state = JobState.CANCELLED if asked else JobState.INTERRUPTED
            job.error = "" if asked else f"its process {job.pid} died; resume the job to go on"
            job.finished_at = wall()

        lost.append(store.update(Job, job.id, change))
    draft_data.sweep(store)
    return lost


def watch(store: Store, job_id: str, *, poll_s: float = 0.25) -> Iterator[Job]:
    """Yield the job now and after each change, until it is final or INTERRUPTED."""
    seen = -1
    while True:
        refresh(store)
        job = require(store, Job, job_id)
        if job.revision != seen:
            seen = job.revision
            yield job
        if job.state.is_final or job.state == JobState.INTERRUPTED:
            return
        time.sleep(poll_s)


def wait(store: Store, job_id: str, *, poll_s: float = 0.25) -> Job:
    """Return the job when it is final or INTERRUPTED."""
    return deque(watch(store, job_id, poll_s=poll_s), maxlen=1)[0]


def delete(store: Store, home: Home, job_id: str) -> None:
    """Delete an ended job, its steps, log, checkpoint and data; the model that it made stays."""
    refresh(store)
    job = require(store, Job, job_id)
    if not job.state.is_final and job.state != JobState.INTERRUPTED:
        raise Conflict(f"job {job_id} is {job.state}; cancel it first")
    draft_data.forget(store, job, actor=user())
    store.delete_many(JobStep, {"job": job_id})
    store.delete(Job, job_id)
    shutil.rmtree(job_folder(home, job_id), ignore_errors=True)


def drop_work(home: Home, job_id: str) -> None:
    """Delete what only a job that goes on needs: its checkpoint and its head before the gate.

    Quiet where that fails.
    """
    folder = job_folder(home, job_id)
    shutil.rmtree(folder / HEAD, ignore_errors=True)
    for path in folder.glob(f"{CHECKPOINT}*"):  # also one that was being written
        with contextlib.suppress(OSError):
            path.unlink()


def job_folder(home: Home, job_id: str) -> Path:
    """Return the folder of a job's log and checkpoint."""
    return home.jobs / job_id


def log_path(home: Home, job_id: str) -> Path:
    """Return the file that a job's process writes its log to."""
    return job_folder(home, job_id) / "log.txt"


def _launch(store: Store, home: Home, job_id: str, allowed: tuple[JobState, ...], verb: str) -> Job:
    require(store, Job, job_id)

    def to_running(job: Job) -> None:
        if job.state not in allowed:
            states = ", ".join(allowed)
            raise Conflict(f"job {job.id} is {job.state}; only {states} jobs can be {verb}")
        job.num_resumes += job.state != JobState.CREATED
        job.state, job.error, job.pid, job.pid_started_at = JobState.RUNNING, "", 0, 0.0
        job.started_at, job.finished_at = job.started_at or wall(), None
        job.heartbeat_at = wall()

    store.update(Job, job_id, to_running)
    log = log_path(home, job_id)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        pid = processes.spawn(home, "quickmatch.tuning.job_process", job_id, log)
    except OSError as error:
        reason = str(error)
        return store.update(Job, job_id, lambda job: _fail_to_start(job, reason))
    begun = processes.started_at(pid)

    def note_process(job: Job) -> None:
        if job.pid == 0 and job.state in _ACTIVE:
            job.pid, job.pid_started_at = pid, begun or 0.0

    return store.update(Job, job_id, note_process)


def _fail_to_start(job: Job, reason: str) -> None:
    job.state, job.finished_at = JobState.FAILED, wall()
    job.error = f"its process could not be started: {reason}; free memory or disk and resume it"


def _is_lost(job: Job) -> bool:
    if job.pid == 0:
        return wall() - job.heartbeat_at > _START_GRACE_S
    return not processes.is_alive(job.pid, job.pid_started_at)


def _base(store: Store, name: str, warm_start_from: str) -> Model:
    if warm_start_from:
        adapter = require(store, Model, warm_start_from)
        if adapter.model_kind != ModelKind.ADAPTER:
            raise ConfigError(f"warm_start_from {adapter.id!r} is no adapter; use base_model")
        if name and name != adapter.base_model:
            raise ConfigError(
                f"warm_start_from {adapter.id!r} was trained on {adapter.base_model!r}, not on "
                f"{name!r}; leave base_model out"
            )
        name = adapter.base_model
    if not name:
        raise ConfigError("no base model given; pass base_model or warm_start_from")
    return check_base(store, name)


def _check_data(store: Store, dataset: str, evaluation: str, settings: SftSettings) -> None:
    verify(require(store, Dataset, dataset))
    if evaluation:
        verify(require(store, Dataset, evaluation))
    if evaluation and settings.eval_auto_carveout:
        raise ConfigError("evaluation_dataset and eval_auto_carveout exclude each other")
    if evaluation == dataset:
        raise ConfigError(f"evaluation_dataset is the training dataset {dataset!r}; split it first")
    if settings.early_stop and not (evaluation or settings.eval_auto_carveout):
        raise ConfigError("early_stop needs an evaluation_dataset or eval_auto_carveout")
