"""Follows a job in the store until it is complete, with a bar. Knows no kind of job."""

import asyncio
from collections.abc import Callable

from examples.credit_cards.product import StageError
from examples.credit_cards.screen import Screen
from quickmatch.store.documents import Job, JobState
from quickmatch.store.protocol import Store, require

POLL_S = 0.02


async def follow_job(
    store: Store, job_id: str, screen: Screen, on_look: Callable[[Job], None] = lambda _: None
) -> Job:
    """Return the job when it is complete. Raises StageError if it ends otherwise.

    on_look: called with the job each time that it is read.
    """
    with screen.bar("training steps", 1) as bar:
        while True:
            job = require(store, Job, job_id)
            progress = job.progress
            bar.show(progress.step, _note(job), total=progress.total_steps or None)
            on_look(job)
            if job.state is JobState.COMPLETED:
                return job
            if job.state.is_final or job.state is JobState.INTERRUPTED:
                raise StageError(f"job {job_id} is {job.state}: {job.error}")
            await asyncio.sleep(POLL_S)


def _note(job: Job) -> str:
    progress = job.progress
    parts = [progress.phase]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.acceptance is not None:
        parts.append(f"foretells {progress.acceptance:.0%}")
    if progress.tokens_per_s:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.eta_s is not None:
        parts.append(f"{progress.eta_s:.0f} s left")
    return " · ".join(parts)
