"""`quickmatch serve`: the gateway process, with an engine process for each local model."""

import asyncio
import socket
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quickmatch.cli import server_lock
from quickmatch.cli.output import note
from quickmatch.cli.session import Session, open_session
from quickmatch.cli.settings import Changes, SetOption, check_changes, parse_changes
from quickmatch.core.errors import ConfigError
from quickmatch.core.shipped import SHIPPED_MODEL
from quickmatch.store.documents import Deployment, DeploymentState, Model
from quickmatch.store.protocol import require

if TYPE_CHECKING:
    import uvicorn

    from quickmatch.fleet import Fleet
    from quickmatch.tuning.adapt import AdaptationLoop


class Speculation(StrEnum):
    """What `--speculation` takes."""

    AUTO = "auto"
    OFF = "off"


class Quantization(StrEnum):
    """What `--quantization` takes: weights as they are, or rounded while they are read."""

    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"
    INT4_ASYM = "int4-asym"
    MXFP4 = "mxfp4"
    FP8 = "fp8"  # GPUs that have it


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(
        epilog="Examples: quickmatch serve · quickmatch serve ./Qwen2.5-0.5B --port 9000 "
        "· quickmatch serve ./Qwen2.5-0.5B --quantization int8"
    )(serve)


def serve(
    model: Annotated[
        str,
        typer.Argument(help="A model's name, a folder, or a hub id; default: what is deployed."),
    ] = "",
    model_option: Annotated[str, typer.Option("--model", hidden=True)] = "",  # vLLM's other way
    name: Annotated[str, typer.Option(help="The name to serve it under.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    trace: Annotated[bool, typer.Option("--trace", help="Record all calls.")] = False,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    quantization: Annotated[
        Quantization, typer.Option(help="Round the weights to fewer bits while loading.")
    ] = Quantization.NONE,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_model_len: Annotated[
        int | None, typer.Option(min=16, help="Tokens of prompt and completion together.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences in one step.")] = 64,
    max_queue_len: Annotated[int, typer.Option(min=1, help="Waiting; beyond it: 429.")] = 512,
    kv_memory_gb: Annotated[
        float | None, typer.Option(min=0.01, help="For the KV cache; default: a share.")
    ] = None,
    prefix_caching: Annotated[bool, typer.Option("--prefix-caching/--no-prefix-caching")] = True,
    cache_ttl: Annotated[
        float, typer.Option(min=0.0, help="Seconds an exact-cache entry lives; 0: no cache.")
    ] = 300.0,
    speculation: Annotated[
        Speculation | None, typer.Option(help="Draft tokens ahead and verify them, or never.")
    ] = None,
    draft_model: Annotated[
        str, typer.Option(help="A small model with the same tokenizer to draft with.")
    ] = "",
    set_: SetOption = None,
) -> None:
    """Serve models behind an OpenAI-compatible URL."""
    if model and model_option:
        raise ConfigError(f"two models are named, {model!r} and --model {model_option!r}; name one")
    engine = {
        "dtype": dtype,
        "quantization": quantization.value,
        "device": device,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_queue_len": max_queue_len,
        "kv_memory_bytes": None if kv_memory_gb is None else int(kv_memory_gb * 2**30),
        "enable_prefix_caching": prefix_caching,
    }
    changes = _changes(speculation, draft_model, set_)
    with _listen(host, port) as listening, open_session() as session:
        url = f"http://{host}:{listening.getsockname()[1]}/v1"
        with server_lock.hold(session.home, url):
            deployment = _want(session, model or model_option, name, trace, engine, changes)
            asyncio.run(_run(session, listening, url, cache_ttl, deployment))


def _listen(host: str, port: int) -> socket.socket:
    """Return a bound socket. Raises ConfigError with the remedy if the address can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off for sockets that say TCP, not for those that leave it open;
    # without the protocol here, a short answer waits 40 ms for the client's acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"can't listen on {host}:{port}: {reason}; "
            "choose another --port (0 takes a free one) or stop what uses it"
        ) from error
    return listening


def _changes(speculation: Speculation | None, draft_model: str, pairs: list[str] | None) -> Changes:
    """Return what the flags set; those that were not given leave a deployment as it is."""
    changes = parse_changes(pairs)
    if speculation is not None:
        drafters: list[str] | None = [] if speculation is Speculation.OFF else None
        changes.speculation = {"drafters": drafters, **changes.speculation}
    if draft_model:
        changes.speculation = {"draft_model": draft_model, **changes.speculation}
    return changes


def _want(
    session: Session,
    source: str,
    name: str,
    trace: bool,
    engine: dict[str, Any],
    changes: Changes,
) -> str:
    """Write what shall be served: one model, or what is deployed already. Returns its name."""
    from quickmatch.cli.deploy import want_deployment
    from quickmatch.cli.models import ensure_model

    wanted = list(session.store.find(Deployment, {"wanted": True}))
    if not source and wanted:
        _change_deployed(session, wanted, changes)
        note(f"serving what is deployed: {', '.join(d.id for d in wanted)}")
        return wanted[0].id
    model = ensure_model(session, source or SHIPPED_MODEL, spare=name)
    known = session.store.get(Deployment, name or model.id)
    check_changes(session, model, known, changes)
    deployment = want_deployment(session, model, name=name, trace=trace)
    for other in wanted:
        if other.id != deployment.id:
            session.store.update(Deployment, other.id, _stop)

    def configure(d: Deployment) -> None:
        d.engine = {key: value for key, value in engine.items() if value is not None}
        d.trace = trace
        changes.apply(d)

    session.store.update(Deployment, deployment.id, configure)
    return deployment.id


def _change_deployed(session: Session, wanted: list[Deployment], changes: Changes) -> None:
    if not changes:
        return
    if len(wanted) > 1:
        names = ", ".join(d.id for d in wanted)
        raise ConfigError(
            f"{names} are deployed and the settings could be any one's; name it with --model, or "
            "use `quickmatch update deployment`"
        )
    check_changes(session, require(session.store, Model, wanted[0].model), wanted[0], changes)
    session.store.update(Deployment, wanted[0].id, changes.apply)


def _stop(deployment: Deployment) -> None:
    deployment.wanted = False


async def _run(
    session: Session, listening: socket.socket, url: str, cache_ttl: float, deployment: str
) -> None:
    """Serve until a signal. Raises ConfigError if the deployment can't be served at all."""
    from quickmatch.fleet import Fleet
    from quickmatch.observe import Metrics

    fleet = Fleet(session.store, session.home, metrics=Metrics(), url=url)
    await fleet.start()  # first: its engine loads while the rest of the server is read
    server, loop = await asyncio.to_thread(_build_server, session, fleet, cache_ttl)
    watching = asyncio.create_task(_watch(session, deployment, url, server))
    adapting = asyncio.create_task(loop.run())
    await server.serve(sockets=[listening])
    watching.cancel()
    adapting.cancel()
    failure, _ = await asyncio.gather(watching, adapting, return_exceptions=True)
    if isinstance(failure, ConfigError):
        raise failure


def _build_server(
    session: Session, fleet: "Fleet", cache_ttl: float
) -> tuple["uvicorn.Server", "AdaptationLoop"]:
    """Return the HTTP server and the loop beside it; reading their modules takes a second."""
    import uvicorn

    from quickmatch.caching import ExactCache, ExactCacheSettings
    from quickmatch.gateway import create_app
    from quickmatch.observe import TraceWriter
    from quickmatch.tuning.adapt import AdaptationLoop
    from quickmatch.tuning.adapt_jobs import StoredDraftJobs

    store = session.store
    cache = ExactCache(store, ExactCacheSettings(ttl_s=cache_ttl)) if cache_ttl else None
    app = create_app(fleet, cache, TraceWriter(store, fleet.metrics))
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10)
    # The loop knows the fleet as little as the fleet knows tuning: they meet in the store.
    return uvicorn.Server(config), AdaptationLoop(store, StoredDraftJobs(store, session.home))


async def _watch(session: Session, name: str, url: str, server: "uvicorn.Server") -> None:
    """Tell when the deployment is ready; stop the server and raise if it never will be."""
    start = time.monotonic()
    while True:
        document = await asyncio.to_thread(session.store.get, Deployment, name)
        if document is not None and document.state is DeploymentState.READY:
            seconds = time.monotonic() - start
            note(f"{name} is ready at {url} after {seconds:.1f} s; Ctrl-C stops the server")
            return
        if document is not None and document.state is DeploymentState.FAILED:
            server.should_exit = True
            raise ConfigError(f"can't serve {document.model!r}: {document.error}")
        await asyncio.sleep(0.05)
