"""Writes a run's course into the store, and reads from it whether to stop.

Owns the job's progress and its loss curve. Steps are kept in memory for about a second and then
written together with the progress, so that a fast run on a small model does not wait for its own
bookkeeping. A step that is made again after a crash replaces the one that was written before.
"""

import threading
import time

from quickmatch.core.clock import wall
from quickmatch.store.documents import Job, JobState, JobStep, Progress
from quickmatch.store.protocol import Store
from quickmatch.tuning.sft import StepReport

_WRITE_EVERY_S = 1.0
_CANCELLED = (JobState.CANCELLING, JobState.CANCELLED)
_RECENT_STEPS = 20  # that loss and speed are averaged over


class JobReport:
    """The store's side of one run: a `sft.Listener`."""

    def __init__(self, store: Store, job_id: str, stop: threading.Event) -> None:
        self._store = store
        self._job_id = job_id
        self._stop = stop  # set by SIGTERM
        self._seen_version = -1
        self._written_at = 0.0
        self._unwritten: dict[int, JobStep] = {}
        self._recent: list[StepReport] = []
        self.progress = Progress()
        self._is_ours = True
        self.is_cancelling = False
        self.steps_per_epoch = 1

    def on_step(self, report: StepReport) -> None:
        """Note a step; write about once a second."""
        self._recent = [*self._recent[1 - _RECENT_STEPS :], report]
        seconds = sum(r.step_s for r in self._recent)
        num_tokens = sum(r.num_tokens for r in self._recent)
        speed = num_tokens / seconds if seconds > 0 else None
        step = self._step(report.step)
        step.loss, step.learning_rate, step.tokens_per_s = report.loss, report.learning_rate, speed
        step.acceptance = report.acceptance
        progress = self.progress
        known = [r.acceptance for r in self._recent if r.acceptance is not None]
        progress.acceptance = sum(known) / len(known) if known else None
        progress.step = report.step
        progress.epoch = report.step / self.steps_per_epoch
        progress.loss = sum(r.loss for r in self._recent) / len(self._recent)
        progress.learning_rate, progress.tokens_per_s = report.learning_rate, speed
        progress.eta_s = (progress.total_steps - report.step) * seconds / len(self._recent)
        if time.monotonic() - self._written_at >= _WRITE_EVERY_S:
            self.write()

    def on_eval(self, step: int, loss: float) -> None:
        """Note an evaluation beside its step."""
        self._step(step).eval_loss = loss
        self.progress.eval_loss = loss
        self.write()

    def on_phase(self, phase: str) -> None:
        """Show what the run is doing."""
        self.progress.phase = phase
        self.write()

    def before_checkpoint(self) -> None:
        """Write the steps that the checkpoint will hold."""
        self.write()

    def should_stop(self) -> bool:
        """Whether SIGTERM came, or the job is RUNNING no more, mostly because it was cancelled.

        Cheap while nobody writes to the store.
        """
        version = self._store.version()
        if version != self._seen_version:
            self._seen_version = version
            job = self._store.get(Job, self._job_id)
            self.is_cancelling = job is None or job.state in _CANCELLED
            self._is_ours = job is not None and job.state == JobState.RUNNING
        return self.is_cancelling or not self._is_ours or self._stop.is_set()

    def write(self) -> None:
        """Write progress, heartbeat and the steps since the last time."""

        def change(job: Job) -> None:
            job.progress = self.progress.model_copy()
            job.heartbeat_at = wall()

        self._store.put(*self._unwritten.values())
        self._unwritten.clear()
        self._store.update(Job, self._job_id, change)
        self._written_at = time.monotonic()

    def _step(self, step: int) -> JobStep:
        """Return the step's document, new or from before (an evaluation comes after its step)."""
        if step not in self._unwritten:
            id = f"{self._job_id}/{step:08d}"
            found = self._store.get(JobStep, id) if step == self.progress.step else None
            self._unwritten[step] = found or JobStep(
                id=id, created_at=wall(), job=self._job_id, step=step
            )
        return self._unwritten[step]
