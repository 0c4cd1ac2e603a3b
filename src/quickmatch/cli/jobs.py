"""`quickmatch cancel` and `resume`, and following a job live from any terminal."""

import sys
from typing import Annotated

import typer

from quickmatch.cli.output import Output, OutputFormat, note, number, print_json
from quickmatch.cli.session import Session, open_session
from quickmatch.store.documents import Job, JobState
from quickmatch.store.protocol import require

JobId = Annotated[str, typer.Argument(help="The job's id.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow it until it ends.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command(epilog="Example: quickmatch cancel sftj-01jd")(cancel)
    app.command(epilog="Example: quickmatch resume sftj-01jd --wait")(resume)


def cancel(job: JobId, output: Output = OutputFormat.TEXT) -> None:
    """Cancel a job. What it saved stays, so that it can be resumed."""
    from quickmatch.tuning import jobs

    with open_session() as session:
        require(session.store, Job, job)
        jobs.cancel(session.store, job)
        _print(require(session.store, Job, job), output)


def resume(job: JobId, wait: Wait = False, output: Output = OutputFormat.TEXT) -> None:
    """Go on with an interrupted, cancelled or failed job from its last checkpoint."""
    from quickmatch.tuning import jobs

    with open_session() as session:
        require(session.store, Job, job)
        jobs.resume(session.store, session.home, job)
        document = follow(session, job) if wait else require(session.store, Job, job)
        _print(document, output)


def follow(session: Session, job_id: str) -> Job:
    """Show a job's progress until it ends; return how it ended. Exit code 1 if it failed."""
    from quickmatch.tuning import jobs

    job = require(session.store, Job, job_id)
    if sys.stderr.isatty():
        job = _follow_with_bar(session, job)
    else:
        for snapshot in jobs.watch(session.store, job.id):
            job = snapshot
            note(_line(job))
    if job.state in (JobState.FAILED, JobState.INTERRUPTED):
        note(f"job {job.id} is {job.state}: {job.error or 'its process ended'}")
        raise typer.Exit(1)
    if job.metrics.get("message"):
        note(f"job {job.id}: {job.metrics['message']}")
    return job


def _follow_with_bar(session: Session, job: Job) -> Job:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from quickmatch.tuning import jobs

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(_line(job), total=None)
        for snapshot in jobs.watch(session.store, job.id):
            job = snapshot
            total = job.progress.total_steps or None
            bar.update(task, description=_line(job), completed=job.progress.step, total=total)
    return job


def _line(job: Job) -> str:
    p = job.progress
    parts = [f"{job.id} {job.state}", p.phase, f"step {p.step}/{p.total_steps}"]
    parts.append(f"loss {number(p.loss, 3)}")
    if p.acceptance is not None:
        parts.append(f"foretold {p.acceptance:.0%}")
    if p.eval_loss is not None:
        parts.append(f"eval loss {p.eval_loss:.3f}")
    if p.tokens_per_s:
        parts.append(f"{p.tokens_per_s:,.0f} tokens/s")
    if p.eta_s:
        parts.append(f"{p.eta_s:.0f} s left")
    return " · ".join(part for part in parts if part)


def _print(job: Job, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json(job.model_dump(mode="json"))
    else:
        typer.echo(_line(job))
