"""`quickmatch load-draft` and `unload-draft`: put a trained head live, or take it off.

These write what is wanted into the store; the running server swaps heads between two steps, and no
answer changes by it.
"""

from typing import Annotated

import typer

from quickmatch.cli import server_lock
from quickmatch.cli.deploy import DeploymentOption, Timeout, Wait, wait_for
from quickmatch.cli.output import Output, OutputFormat, note, print_json
from quickmatch.cli.session import Session, open_session
from quickmatch.core.errors import ConfigError, Conflict, NotFound
from quickmatch.store.documents import Deployment, Model
from quickmatch.store.protocol import require
from quickmatch.store.versions import require_draft


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command(
        "load-draft",
        epilog="Examples: quickmatch load-draft base-draft · quickmatch load-draft base-draft@2 "
        "--deployment quickmatch-base · quickmatch load-draft bot-draft --adapter support-bot",
    )(load_draft)
    app.command(
        "unload-draft", epilog="Example: quickmatch unload-draft --deployment quickmatch-base"
    )(unload_draft)


AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", help="For this adapter's answers; default: what it was trained for."),
]


def load_draft(
    draft: Annotated[str, typer.Argument(help="A draft's name, or NAME@VERSION.")],
    deployment: DeploymentOption = "",
    adapter: AdapterOption = None,
    wait: Wait = True,
    timeout: Timeout = 60.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Draft with a trained head on a deployment, by default with its newest version."""
    with open_session() as session:
        model, version = require_draft(session.store, draft)
        version_id = f"{model.id}@{version}"
        document = _deployment_of(session, model, deployment)
        name = model.adapter if adapter is None else adapter
        if name and name not in document.adapters:
            raise Conflict(
                f"adapter {name!r} is not on {document.id!r}; first: quickmatch load-lora {name} "
                f"--deployment {document.id}"
            )

        def want(d: Deployment) -> None:
            d.drafts = {**d.drafts, name: version_id}
            status = d.draft_status.get(name)
            if status is not None and status.state == "FAILED":  # asked again: try again
                d.draft_status = {k: v for k, v in d.draft_status.items() if k != name}

        document = session.store.update(Deployment, document.id, want)
        if server_lock.running_server(session.home) is None:
            note("no server is running; it will draft when `quickmatch serve` runs")
        elif wait:
            done = lambda d: _is_live(d, name, version_id)  # noqa: E731
            document = wait_for(session, document.id, done, timeout)
        status = document.draft_status.get(name)
        state = status.state if status and status.draft == version_id else "PENDING"
        _print(document, f"{version_id} is {state} on {document.id}", output)


def unload_draft(
    deployment: DeploymentOption = "",
    adapter: Annotated[str, typer.Option("--adapter", help="The head for this adapter.")] = "",
    wait: Wait = True,
    timeout: Timeout = 60.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Take a trained head off a deployment; it goes on drafting with what else there is."""
    with open_session() as session:
        found = _deployment_with(session, deployment, adapter)
        gone = found.drafts[adapter]

        def remove(d: Deployment) -> None:
            d.drafts = {k: v for k, v in d.drafts.items() if k != adapter}

        document = session.store.update(Deployment, found.id, remove)
        if wait and server_lock.running_server(session.home):
            done = lambda d: adapter not in d.draft_status  # noqa: E731
            document = wait_for(session, found.id, done, timeout)
        _print(document, f"{gone} is off {found.id}", output)


def _deployment_of(session: Session, draft: Model, name: str) -> Deployment:
    from quickmatch.cli.models import fits_base

    if name:
        document = require(session.store, Deployment, name)
        if not fits_base(session, draft, document.model):
            raise Conflict(
                f"draft {draft.id!r} was trained for {draft.base_model!r}, but deployment "
                f"{name!r} serves {document.model!r}"
            )
        return document
    where = {"model": draft.base_model, "wanted": True}
    found = list(session.store.find(Deployment, where))
    if len(found) != 1:
        names = ", ".join(d.id for d in found) or "no deployment"
        raise Conflict(f"{draft.base_model!r} is served by {names}; give --deployment")
    return found[0]


def _deployment_with(session: Session, name: str, adapter: str) -> Deployment:
    whose = f"for adapter {adapter!r}" if adapter else "for a base model"
    if name:
        document = require(session.store, Deployment, name)
        if adapter not in document.drafts:
            raise NotFound(f"no draft {whose} is on {name!r}; see `get deployment {name}`")
        return document
    having = [d for d in session.store.find(Deployment) if adapter in d.drafts]
    if len(having) != 1:
        names = ", ".join(d.id for d in having) or "no deployment"
        raise Conflict(f"a draft {whose} is on {names}; give --deployment")
    return having[0]


def _is_live(deployment: Deployment, adapter: str, version_id: str) -> bool:
    status = deployment.draft_status.get(adapter)
    if status is None or status.draft != version_id:
        return False
    if status.state == "FAILED":
        raise ConfigError(f"draft {version_id} failed on {deployment.id!r}: {status.error}")
    return status.state == "READY"


def _print(document: Deployment, line: str, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json(document.model_dump(mode="json"))
    else:
        typer.echo(line)
