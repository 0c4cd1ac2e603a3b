"""`quickmatch deploy`, `load-lora` and `unload-lora`: say what shall be served, wait until it is.

These write what is wanted into the store; the running server reads it and acts, without a restart.
"""

import time
from collections.abc import Callable
from typing import Annotated

import typer

from quickmatch.cli import server_lock
from quickmatch.cli.output import Output, OutputFormat, note, print_json
from quickmatch.cli.session import Session, open_session
from quickmatch.core.errors import Conflict, NotFound, Unavailable
from quickmatch.store.documents import Deployment, DeploymentState, Model, ModelKind
from quickmatch.store.protocol import require

POLL_S = 0.05

DeploymentOption = Annotated[str, typer.Option("--deployment", help="On which deployment.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is served.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Give up waiting after these seconds.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command(epilog="Example: quickmatch deploy support-bot --trace")(deploy)
    app.command(
        "load-lora", epilog="Example: quickmatch load-lora support-bot --deployment quickmatch-base"
    )(load_lora)
    app.command(
        "unload-lora",
        epilog="Example: quickmatch unload-lora support-bot --deployment quickmatch-base",
    )(unload_lora)


def deploy(
    model: Annotated[str, typer.Argument(help="A model's name, a folder, or a hub id.")],
    name: Annotated[str, typer.Option(help="The deployment's name; default: the model's.")] = "",
    trace: Annotated[bool, typer.Option("--trace", help="Record all its calls.")] = False,
    wait: Wait = True,
    timeout: Timeout = 300.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Serve a model. An adapter goes live on its base model's deployment."""
    from quickmatch.cli.models import ensure_model

    with open_session() as session:
        found = ensure_model(session, model, spare=name)
        if found.model_kind is ModelKind.ADAPTER:
            deployment = _want_adapter(session, found, name)
        else:
            deployment = want_deployment(session, found, name=name, trace=trace)
        _finish(session, deployment, found, wait, timeout, output)


def load_lora(
    adapter: Annotated[str, typer.Argument(help="An adapter's name.")],
    deployment: DeploymentOption = "",
    wait: Wait = True,
    timeout: Timeout = 60.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Put an adapter's newest version live on a running deployment."""
    with open_session() as session:
        model = require(session.store, Model, adapter)
        if model.model_kind is not ModelKind.ADAPTER:
            raise Conflict(f"{adapter!r} is a {model.model_kind} model, not an adapter; use deploy")
        document = _want_adapter(session, model, deployment)
        _finish(session, document, model, wait, timeout, output)


def unload_lora(
    adapter: Annotated[str, typer.Argument(help="An adapter's name.")],
    deployment: DeploymentOption = "",
    wait: Wait = True,
    timeout: Timeout = 60.0,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Take an adapter off a deployment; requests that run on it are finished first."""
    with open_session() as session:
        document = _deployment_with(session, adapter, deployment)

        def remove(d: Deployment) -> None:
            d.adapters = {k: v for k, v in d.adapters.items() if k != adapter}

        document = session.store.update(Deployment, document.id, remove)
        if wait and server_lock.running_server(session.home):
            document = wait_for(
                session, document.id, lambda d: adapter not in d.adapter_status, timeout
            )
        _print(document, f"{adapter} is off {document.id}", output)


def want_deployment(session: Session, model: Model, *, name: str = "", trace: bool) -> Deployment:
    """Write that `model` shall be served; return the deployment. Idempotent."""
    name = name or model.id
    known = session.store.get(Deployment, name)
    if known is None:
        known = Deployment(id=name, created_at=time.time(), model=model.id, trace=trace)
        session.store.insert(known)
        return known
    if known.model != model.id:
        raise Conflict(f"deployment {name!r} serves {known.model!r}; give another --name")

    def want(d: Deployment) -> None:
        if not d.wanted or d.state is DeploymentState.FAILED:
            d.state, d.error = DeploymentState.PENDING, ""
        d.wanted = True
        d.trace = d.trace or trace

    return session.store.update(Deployment, name, want)


def stop_deployment(session: Session, name: str) -> None:
    """Stop a deployment, wait until its server has let go of it, and delete it."""
    require(session.store, Deployment, name)

    def stop(d: Deployment) -> None:
        d.wanted = False

    session.store.update(Deployment, name, stop)
    if server_lock.running_server(session.home):
        wait_for(session, name, lambda d: d.state is DeploymentState.STOPPED, 30.0)
    session.store.delete(Deployment, name)


def wait_for(
    session: Session, name: str, done: Callable[[Deployment], bool], timeout_s: float
) -> Deployment:
    """Poll until `done`. Raises Unavailable on timeout and Conflict if the deployment failed."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        deployment = require(session.store, Deployment, name)
        if done(deployment):
            return deployment
        if deployment.state is DeploymentState.FAILED and deployment.wanted:
            raise Conflict(f"deployment {name!r} failed: {deployment.error}")
        time.sleep(POLL_S)
    raise Unavailable(
        f"deployment {name!r} was not there after {timeout_s:g} s; see `get deployment`"
    )


def _want_adapter(session: Session, adapter: Model, name: str) -> Deployment:
    deployment = _deployment_of_base(session, adapter, name)

    def add(d: Deployment) -> None:
        d.adapters = {**d.adapters, adapter.id: adapter.version}
        status = d.adapter_status.get(adapter.id)
        if status is not None and status.state == "FAILED":  # asked again: try again
            d.adapter_status = {k: v for k, v in d.adapter_status.items() if k != adapter.id}

    return session.store.update(Deployment, deployment.id, add)


def _deployment_of_base(session: Session, adapter: Model, name: str) -> Deployment:
    from quickmatch.cli.models import fits_base

    if name:
        deployment = require(session.store, Deployment, name)
        if not fits_base(session, adapter, deployment.model):
            raise Conflict(
                f"adapter {adapter.id!r} was trained on {adapter.base_model!r}, but deployment "
                f"{name!r} serves {deployment.model!r}"
            )
        return deployment
    where = {"model": adapter.base_model, "wanted": True}
    candidates = list(session.store.find(Deployment, where))
    if len(candidates) > 1:
        names = ", ".join(d.id for d in candidates)
        raise Conflict(
            f"several deployments serve {adapter.base_model!r}: {names}; give --deployment"
        )
    if candidates:
        return candidates[0]
    base = require(session.store, Model, adapter.base_model)
    return want_deployment(session, base, trace=False)


def _deployment_with(session: Session, adapter: str, name: str) -> Deployment:
    if name:
        deployment = require(session.store, Deployment, name)
        if adapter not in deployment.adapters:
            raise NotFound(f"adapter {adapter!r} is not on {name!r}; see `get deployment {name}`")
        return deployment
    having = [d for d in session.store.find(Deployment) if adapter in d.adapters]
    if len(having) != 1:
        names = ", ".join(d.id for d in having) or "no deployment"
        raise Conflict(f"adapter {adapter!r} is on {names}; give --deployment")
    return having[0]


def _finish(
    session: Session,
    deployment: Deployment,
    model: Model,
    wait: bool,
    timeout_s: float,
    output: OutputFormat,
) -> None:
    if server_lock.running_server(session.home) is None:
        note("no server is running; it will be served when `quickmatch serve` runs")
    elif wait:
        deployment = wait_for(session, deployment.id, lambda d: _is_live(d, model), timeout_s)
    _print(deployment, f"{model.version_id} is {_state_of(deployment, model)}", output)


def _is_live(deployment: Deployment, model: Model) -> bool:
    if model.model_kind is not ModelKind.ADAPTER:
        return deployment.state is DeploymentState.READY
    status = deployment.adapter_status.get(model.id)
    if status is not None and status.state == "FAILED" and status.version == model.version:
        raise Conflict(f"adapter {model.version_id} failed on {deployment.id!r}: {status.error}")
    return status is not None and status.state == "READY" and status.version == model.version


def _state_of(deployment: Deployment, model: Model) -> str:
    if model.model_kind is not ModelKind.ADAPTER:
        return f"{deployment.state} as {deployment.id}"
    status = deployment.adapter_status.get(model.id)
    return f"{status.state if status else 'PENDING'} on {deployment.id}"


def _print(deployment: Deployment, line: str, output: OutputFormat) -> None:
    if output is OutputFormat.JSON:
        print_json(deployment.model_dump(mode="json"))
    else:
        typer.echo(line)
