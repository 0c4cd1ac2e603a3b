"""The inside of a job: `python -m quickmatch.tuning.job_process JOB_ID`.

Owns a job's state from RUNNING on. It runs at low priority beside serving, logs to its standard
error (`jobs` points that at the job's log file), and on SIGTERM writes a checkpoint and leaves
the job INTERRUPTED. Every other way out ends in COMPLETED, CANCELLED or FAILED with the reason;
what kills the process outright is seen from outside (`jobs.refresh`).
"""

import contextlib
import errno
import faulthandler
import logging
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from quickmatch.core.clock import wall
from quickmatch.core.errors import ConfigError, Conflict, QuickmatchError, StoreError
from quickmatch.core.settings import Home
from quickmatch.store.documents import Job, JobState
from quickmatch.store.open import open_store
from quickmatch.store.protocol import Store, require
from quickmatch.tuning import draft_data, processes
from quickmatch.tuning.jobs import drop_work, log_path

logger = logging.getLogger("quickmatch.job")
_NICENESS = "10"  # about a tenth of a core where serving wants it all
_STORE_RETRIES = 10
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_KILLED_FIRST = "1000"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job's process ends."""

    state: JobState
    error: str = ""


def main(job_id: str) -> int:
    """Run the job; return the process's exit code."""
    faulthandler.enable()  # a crash in native code leaves its stack in the log
    _offer_to_oom_killer()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    home = Home.from_environment()
    store = open_store(home)
    _claim(store, job_id)
    outcome = _guarded(store, home, job_id, stop)
    logger.info("%s %s", outcome.state, outcome.error)
    _settle(store, home, job_id, outcome)
    store.close()
    return 0 if outcome.state != JobState.FAILED else 1


def _claim(store: Store, job_id: str) -> None:
    """Write down that this process runs the job."""

    def change(job: Job) -> None:
        if job.state not in (JobState.RUNNING, JobState.CANCELLING) or job.pid not in (0, me):
            raise Conflict(f"job {job.id} is {job.state} by process {job.pid}, not by this one")
        job.pid, job.pid_started_at = me, processes.started_at(me) or 0.0
        job.heartbeat_at = wall()

    me = os.getpid()
    store.update(Job, job_id, change)


def _guarded(store: Store, home: Home, job_id: str, stop: threading.Event) -> Outcome:
    """Run the job, whatever happens; an ended one keeps nothing of what it collected."""
    outcome = _attempt(store, home, job_id, stop)
    if outcome.state.is_final:
        _forget_data(store, job_id, outcome.state)
    return outcome


def _forget_data(store: Store, job_id: str, state: JobState) -> None:
    try:
        job = require(store, Job, job_id)
        job.state = state  # the store learns of it later; the audit log says it now
        if not job.settings.get("keep_data"):
            draft_data.forget(store, job, actor=f"job {job_id}")
    except (OSError, QuickmatchError):
        logger.exception("the collected data stays until the next `quickmatch` command tries again")


def _attempt(store: Store, home: Home, job_id: str, stop: threading.Event) -> Outcome:
    # Imported here: torch takes seconds, and the claim must come first.
    from transformers.utils.logging import disable_progress_bar

    from quickmatch.tuning.draft_job import run_draft
    from quickmatch.tuning.job_report import JobReport
    from quickmatch.tuning.sft import Stopped
    from quickmatch.tuning.sft_job import run_sft

    disable_progress_bar()
    report = JobReport(store, job_id, stop)
    try:
        _make_way()
        job = require(store, Job, job_id)
        work = {"sft": run_sft, "draft": run_draft}[job.job_type]
        metrics = work(store, home, job, report)
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        metrics["peak_memory_bytes"] = peak_kib * 1024
        store.update(Job, job_id, lambda job: job.metrics.update(metrics))
        return Outcome(JobState.COMPLETED)
    except Stopped:
        report.write()
        cancelled = report.is_cancelling
        return Outcome(JobState.CANCELLED if cancelled else JobState.INTERRUPTED)
    except Exception as error:
        logger.exception("the job failed")
        return Outcome(JobState.FAILED, explain(error, home, job_id))


def _offer_to_oom_killer() -> None:
    """Where memory runs out Linux is to end this process, which can go on later, and no engine."""
    with contextlib.suppress(OSError):  # no Linux, or nobody may write there
        _OOM_SCORE.write_text(_KILLED_FIRST)


def _make_way() -> None:
    """Lower this process's priority by QUICKMATCH_JOB_NICENESS, 0 to 19."""
    value = os.environ.get("QUICKMATCH_JOB_NICENESS", _NICENESS)
    if not value.isdigit() or int(value) > 19:
        raise ConfigError(f"QUICKMATCH_JOB_NICENESS is {value!r}; set a whole number from 0 to 19")
    os.nice(int(value))


def explain(error: Exception, home: Home, job_id: str) -> str:
    """Return why a job failed, in one line with the remedy."""
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
        return (
            f"disk full while writing to {home.root}; the last checkpoint is whole: free space "
            f"and resume job {job_id}"
        )
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text:
        return (
            "out of memory; lower batch_size or max_context_length, of a draft job max_batch_rows, "
            "and create the job again"
        )
    if isinstance(error, QuickmatchError):
        return text
    line = text.strip().splitlines()[0] if text.strip() else "no message"
    return f"{type(error).__name__}: {line}; see {log_path(home, job_id)}"


def _settle(store: Store, home: Home, job_id: str, outcome: Outcome) -> None:
    """Write the final state; a store that fails just now is asked again for some seconds.

    A completed job leaves its log: its checkpoint is three times the size of what it made.
    """

    def change(job: Job) -> None:
        job.state, job.error, job.finished_at = outcome.state, outcome.error, wall()
        job.progress.phase, job.progress.eta_s = "", None

    for attempt in range(_STORE_RETRIES):
        try:
            store.update(Job, job_id, change)
        except StoreError:
            logger.exception("the store did not take the final state, attempt %d", attempt + 1)
            time.sleep(1.0)
            continue
        if outcome.state is JobState.COMPLETED:
            drop_work(home, job_id)
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
