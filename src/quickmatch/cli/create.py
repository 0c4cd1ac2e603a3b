"""`quickmatch create`: datasets, models and fine-tuning jobs."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from quickmatch.cli import create_draft
from quickmatch.cli.output import Output, OutputFormat, print_json
from quickmatch.cli.session import open_session
from quickmatch.core.errors import Conflict, InvalidRequest
from quickmatch.core.ids import check_name
from quickmatch.core.shipped import SHIPPED_MODEL
from quickmatch.store.documents import Document, Model, ModelKind


def register(app: typer.Typer) -> None:
    """Add the verb group to the command."""
    group = typer.Typer(
        help="Create a dataset, a model, a fine-tuning job or a draft job.", no_args_is_help=True
    )
    group.command(
        epilog="Example: quickmatch create dataset tickets --from-traces "
        "--filter 'tags.app=support AND status=200' --holdout 0.1"
    )(dataset)
    group.command(
        epilog="Example: quickmatch create model teacher --remote-url https://host/v1 "
        "--remote-model big-model --api-key-env TEACHER_API_KEY"
    )(model)
    group.command(
        epilog="Example: quickmatch create sftj --base-model quickmatch-base --dataset tickets "
        "--output-model support-bot --lora-rank 8 --epochs 3"
    )(sftj)
    create_draft.register(group)
    app.add_typer(group, name="create")


def dataset(
    name: Annotated[str, typer.Argument(help="The dataset's name.")],
    file: Annotated[Path | None, typer.Argument(help="A chat JSONL file.")] = None,
    from_traces: Annotated[bool, typer.Option("--from-traces", help="Make it of traces.")] = False,
    filter: Annotated[str, typer.Option(help="Which traces: FIELD=VALUE AND …")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many traces.")] = None,
    holdout: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share split off into NAME-holdout.")
    ] = 0.0,
    stratify_by: Annotated[str, typer.Option(help="A tag: keep its shares in the split.")] = "",
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    description: Annotated[str, typer.Option()] = "",
    output: Output = OutputFormat.TEXT,
) -> None:
    """Create a dataset from a chat JSONL file or from recorded traces.

    A wrong line is refused with its number, and nothing is created.
    """
    from quickmatch.cli.filters import parse_filter
    from quickmatch.tuning import datasets

    if (file is None) is not from_traces:
        raise InvalidRequest("give either a FILE or --from-traces")
    check_name(name, "dataset")
    with open_session() as session:
        if file is not None:
            made = datasets.create_from_file(
                session.store, session.home, name, file, description=description
            )
        else:
            made = datasets.create_from_traces(
                session.store,
                session.home,
                name,
                parse_filter(filter),
                limit=limit,
                description=description,
            )
        created = [made]
        if holdout > 0:
            created = list(
                datasets.split(
                    session.store,
                    session.home,
                    name,
                    holdout=holdout,
                    seed=seed,
                    stratify_by=stratify_by or None,
                )
            )
    if output is OutputFormat.JSON:
        print_json([d.model_dump(mode="json") for d in created])
    else:
        for d in created:
            typer.echo(f"created dataset {d.id}: {d.num_rows:,} rows")


def model(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    path: Annotated[str, typer.Option(help="A Hugging Face or PEFT folder, or a hub id.")] = "",
    base_model: Annotated[str, typer.Option(help="Adapter or draft: the model it is for.")] = "",
    kind: Annotated[
        ModelKind | None, typer.Option(help="What the folder is; default: seen from its files.")
    ] = None,
    adapter: Annotated[
        str, typer.Option(help="Draft: the adapter whose answers it foretells.")
    ] = "",
    remote_url: Annotated[str, typer.Option(help="An OpenAI-compatible URL, to /v1.")] = "",
    remote_model: Annotated[str, typer.Option(help="The model's name there.")] = "",
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the key.")] = "",
    description: Annotated[str, typer.Option()] = "",
    output: Output = OutputFormat.TEXT,
) -> None:
    """Register a model: a folder, a hub id, a LoRA adapter, a draft, or another provider's."""
    from quickmatch.cli.models import (
        ensure_model,
        import_adapter,
        import_draft,
        is_adapter_folder,
        is_draft_folder,
    )
    from quickmatch.engine.folder import resolve_part

    check_name(name, "model")
    if bool(path) is bool(remote_url):
        raise InvalidRequest("give either --path or --remote-url")
    with open_session() as session:
        if session.store.get(Model, name) is not None:
            raise Conflict(f"a model named {name!r} exists; delete it first or choose another name")
        if path and (base_model or kind in (ModelKind.ADAPTER, ModelKind.DRAFT)):
            path = str(resolve_part(path))
        if kind is ModelKind.DRAFT or (kind is None and path and is_draft_folder(path)):
            made = import_draft(session, name, path, base_model, adapter)
        elif path and (base_model or is_adapter_folder(path)):
            made = import_adapter(session, name, path, base_model)
        elif path:
            made = ensure_model(session, path, name)
        else:
            made = Model(
                id=name,
                created_at=time.time(),
                model_kind=ModelKind.REMOTE,
                remote_url=remote_url.rstrip("/"),
                remote_model=remote_model or name,
                api_key_env=api_key_env,
                description=description,
            )
            session.store.insert(made)
    _print_created(made, f"created model {made.id} ({made.model_kind})", output)


def sftj(
    dataset: Annotated[str, typer.Option(help="Train on this dataset.")],
    output_model: Annotated[str, typer.Option(help="The adapter's name; again: a new version.")],
    base_model: Annotated[
        str, typer.Option(help="A base model's name; default: the shipped one.")
    ] = "",
    evaluation_dataset: Annotated[str, typer.Option(help="Measure the loss on this one.")] = "",
    eval_auto_carveout: Annotated[
        bool, typer.Option("--eval-auto-carveout", help="Hold rows back to measure the loss.")
    ] = False,
    lora_rank: Annotated[int | None, typer.Option(min=1)] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows a step.")] = None,
    max_context_length: Annotated[int | None, typer.Option(min=16, help="Tokens a row.")] = None,
    early_stop: Annotated[
        bool, typer.Option("--early-stop", help="Stop when the evaluation loss rises.")
    ] = False,
    lora_alpha: Annotated[float | None, typer.Option(help="Default: twice the rank.")] = None,
    gradient_accumulation_steps: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate_warmup_steps: Annotated[
        int | None, typer.Option(min=0, help="Default: 10 % of the steps.")
    ] = None,
    warm_start_from: Annotated[str, typer.Option(help="Go on from this adapter.")] = "",
    seed: Annotated[int | None, typer.Option()] = None,
    start: Annotated[bool, typer.Option("--start/--no-start")] = True,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it ends.")] = False,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Create a supervised fine-tuning job (LoRA) and start it in the background."""
    from quickmatch.tuning import jobs
    from quickmatch.tuning.settings import SftSettings

    given: dict[str, Any] = {
        "lora_rank": lora_rank,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "max_context_length": max_context_length,
        "lora_alpha": lora_alpha,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "learning_rate_warmup_steps": learning_rate_warmup_steps,
        "eval_auto_carveout": eval_auto_carveout or None,
        "early_stop": early_stop or None,
        "warm_start_from": warm_start_from or None,
        "seed": seed,
    }
    settings = SftSettings.parse({k: v for k, v in given.items() if v is not None})
    with open_session() as session:
        job = jobs.create_sft(
            session.store,
            session.home,
            base_model=base_model or ("" if warm_start_from else SHIPPED_MODEL),
            dataset=dataset,
            output_model=output_model,
            evaluation_dataset=evaluation_dataset,
            settings=settings,
        )
        if start:
            jobs.start(session.store, session.home, job.id)
        if wait:
            from quickmatch.cli.jobs import follow

            job = follow(session, job.id)
    hint = f"created job {job.id}; follow it with: quickmatch get job {job.id} --watch"
    _print_created(job, hint, output)


def _print_created(document: Document, line: str, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json(document.model_dump(mode="json"))
    else:
        typer.echo(line)
