"""`quickmatch delete`: remove a thing with its files, refused while something needs it."""

from typing import Annotated

import typer

from quickmatch.cli.output import Output, OutputFormat, print_json
from quickmatch.cli.session import Session, open_session
from quickmatch.core.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(epilog="Example: quickmatch delete dataset tickets")(delete)


def delete(
    noun: Annotated[str, typer.Argument(help="model, draft, dataset, job, deployment or trace")],
    names: Annotated[list[str], typer.Argument(help="One or more names or ids.")],
    output: Output = OutputFormat.TEXT,
) -> None:
    """Delete things by name."""
    from quickmatch.cli.nouns import find_noun

    found = find_noun(noun)
    removers = {
        "model": _delete_model,
        "draft": _delete_model,
        "dataset": _delete_dataset,
        "job": _delete_job,
        "deployment": _delete_deployment,
        "trace": _delete_trace,
    }
    if found.name not in removers:
        raise ConfigError(f"{found.name} records stay; what can be deleted: {', '.join(removers)}")
    with open_session() as session:
        for name in names:
            removers[found.name](session, name)
    if output is OutputFormat.JSON:
        print_json({"deleted": names})
    else:
        typer.echo(f"deleted {found.name} {', '.join(names)}")


def _delete_model(session: Session, name: str) -> None:
    import shutil

    from quickmatch.core.errors import Conflict
    from quickmatch.store.documents import Deployment, Model, ModelKind
    from quickmatch.store.protocol import require

    model = require(session.store, Model, name)
    for deployment in session.store.find(Deployment):
        drafting = [a for a, d in deployment.drafts.items() if d.partition("@")[0] == name]
        if deployment.wanted and drafting:
            raise Conflict(
                f"draft {name!r} drafts on {deployment.id!r}; first: quickmatch unload-draft "
                f"--deployment {deployment.id}{' --adapter ' if drafting[0] else ''}{drafting[0]}"
            )
        if deployment.wanted and (deployment.model == name or name in deployment.adapters):
            raise Conflict(
                f"model {name!r} is deployed on {deployment.id!r}; first: "
                f"quickmatch {'unload-lora ' + name if name in deployment.adapters else 'delete'} "
                f"{'--deployment' if name in deployment.adapters else 'deployment'} {deployment.id}"
            )
    session.store.delete(Model, name)
    folder = session.home.models / name
    if model.model_kind in (ModelKind.ADAPTER, ModelKind.DRAFT) and folder.exists():
        shutil.rmtree(folder)


def _delete_dataset(session: Session, name: str) -> None:
    from quickmatch.tuning import datasets

    datasets.delete(session.store, name)


def _delete_job(session: Session, name: str) -> None:
    from quickmatch.tuning import jobs

    jobs.delete(session.store, session.home, name)


def _delete_deployment(session: Session, name: str) -> None:
    from quickmatch.cli.deploy import stop_deployment

    stop_deployment(session, name)


def _delete_trace(session: Session, name: str) -> None:
    from quickmatch.store.documents import Trace
    from quickmatch.store.protocol import require

    require(session.store, Trace, name)
    session.store.delete(Trace, name)
