"""`quickmatch create draft-job`: train a head that drafts for a model with one of its adapters."""

from pathlib import Path
from typing import Annotated, Any

import typer

from quickmatch.cli.output import Output, OutputFormat, print_json
from quickmatch.cli.session import Session, open_session
from quickmatch.core.errors import InvalidRequest
from quickmatch.core.shipped import SHIPPED_MODEL
from quickmatch.store.documents import Dataset, Job


def register(group: typer.Typer) -> None:
    """Add the verb to `create`."""
    group.command(
        name="draft-job",
        epilog="Example: quickmatch create draft-job --adapter support-bot --from-traces "
        "--filter 'tags.app=support' --output-draft support-head --wait",
    )(draft_job)


def draft_job(
    output_draft: Annotated[str, typer.Option(help="The head's name; again: a new version.")],
    model: Annotated[
        str, typer.Option(help="The base model to draft for; default: the shipped one.")
    ] = "",
    adapter: Annotated[str, typer.Option(help="Its adapter whose answers to foretell.")] = "",
    deployment: Annotated[
        str, typer.Option(help="Where it is to draft; default: the one that serves the model.")
    ] = "",
    dataset: Annotated[
        str, typer.Option(help="Learn from this dataset, or this JSONL file of chats or prompts.")
    ] = "",
    file: Annotated[
        Path | None, typer.Option(help="Learn from this JSONL file; deleted after: its copy.")
    ] = None,
    from_traces: Annotated[
        bool, typer.Option("--from-traces", help="Learn from recorded calls.")
    ] = False,
    filter: Annotated[str, typer.Option(help="Which traces: FIELD=VALUE AND …")] = "",
    regenerate: Annotated[
        bool | None,
        typer.Option(
            "--regenerate/--no-regenerate",
            help="Let the model write the answers; default: wherever it did not.",
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="At which it writes them.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer.")] = None,
    max_context_length: Annotated[int | None, typer.Option(min=16, help="Tokens a row.")] = None,
    max_sequences: Annotated[int | None, typer.Option(min=2, help="The newest so many.")] = None,
    holdout: Annotated[
        float | None, typer.Option(help="Share of the rows that the gate measures on.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    max_steps: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Sequences a step.")] = None,
    max_batch_rows: Annotated[
        int | None, typer.Option(min=256, help="Held in memory at once; a step is taken in parts.")
    ] = None,
    unroll_steps: Annotated[
        int | None, typer.Option(min=1, max=16, help="Tokens that it learns to draft in a row.")
    ] = None,
    draft_vocab_size: Annotated[
        int | None, typer.Option(min=16, help="Tokens that it can propose.")
    ] = None,
    warm_start_from: Annotated[
        str, typer.Option(help="Go on from this draft, NAME[@VERSION].")
    ] = "",
    seed: Annotated[int | None, typer.Option()] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Publish even what does not beat what stands.")
    ] = False,
    keep_data: Annotated[
        bool, typer.Option("--keep-data", help="Do not delete the token ids at the end.")
    ] = False,
    start: Annotated[bool, typer.Option("--start/--no-start")] = True,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it ends.")] = False,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Create a job that trains a head on what a model says, and start it in the background.

    Rows that end before the answer are answered by the model itself, loaded as its deployment
    serves it (quantization, ranks of adapters). The head is published only if, on rows held back,
    it beats what drafts now. What was collected is deleted at the end.
    """
    from quickmatch.cli.filters import parse_filter
    from quickmatch.tuning import jobs
    from quickmatch.tuning.draft_settings import DraftSettings

    if filter and not from_traces:
        raise InvalidRequest("--filter chooses traces; give --from-traces with it")
    given: dict[str, Any] = {
        "regenerate": regenerate,
        "temperature": temperature,
        "max_output_tokens": max_output_tokens,
        "max_context_length": max_context_length,
        "max_sequences": max_sequences,
        "holdout": holdout,
        "epochs": epochs,
        "max_steps": max_steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "max_batch_rows": max_batch_rows,
        "unroll_steps": unroll_steps,
        "draft_vocab_size": draft_vocab_size,
        "warm_start_from": warm_start_from or None,
        "seed": seed,
        "force": force or None,
        "keep_data": keep_data or None,
    }
    settings = DraftSettings.parse({k: v for k, v in given.items() if v is not None})
    with open_session() as session:
        if dataset and file is None and _is_file(session, dataset):
            dataset, file = "", Path(dataset)
        job = jobs.create_draft(
            session.store,
            session.home,
            model=model or adapter or SHIPPED_MODEL,
            adapter=adapter if model else "",
            dataset=dataset,
            file=file,
            trace_filter=parse_filter(filter) if from_traces else None,
            output_draft=output_draft,
            deployment=deployment,
            settings=settings,
        )
        if start:
            job = jobs.start(session.store, session.home, job.id)
        if wait:
            from quickmatch.cli.jobs import follow

            job = follow(session, job.id)
    _print_created(job, output)


def _is_file(session: Session, dataset: str) -> bool:
    return session.store.get(Dataset, dataset) is None and Path(dataset).is_file()


def _print_created(job: Job, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json(job.model_dump(mode="json"))
    else:
        typer.echo(f"created job {job.id}; follow it with: quickmatch get job {job.id} --watch")
