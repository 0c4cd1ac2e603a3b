"""The HTTP application: paths, their handlers, and the life of what stands behind them.

Owns the wiring of one server. The two completion paths are plain ASGI, because everything about
them (disconnects, streams, errors after the start) needs the connection itself; the rest are
FastAPI routes. Invariant: whatever starts in the lifespan is closed in it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Response
from starlette.responses import JSONResponse
from starlette.routing import Route as HttpRoute
from starlette.types import Receive, Scope, Send

from quickmatch.caching import ExactCache
from quickmatch.core.call import Endpoint
from quickmatch.core.errors import ModelNotFound, QuickmatchError
from quickmatch.fleet import Fleet, ServedModel
from quickmatch.gateway import errors
from quickmatch.gateway.behind import Behind
from quickmatch.gateway.path import CallPath, PathSettings
from quickmatch.observe import Metrics, TraceWriter
from quickmatch.observe.metrics import CONTENT_TYPE

CACHE_UPKEEP_S = 10.0


class Gateway:
    """One server's parts; `app.state.gateway`."""

    def __init__(
        self,
        fleet: Fleet,
        cache: ExactCache | None,
        metrics: Metrics,
        traces: TraceWriter,
        settings: PathSettings,
    ) -> None:
        self.fleet = fleet
        self.cache = cache
        self.metrics = metrics
        self.traces = traces
        self.is_closing = False
        self.behind = Behind()
        self.path = CallPath(fleet, cache, metrics, traces, self.behind, settings)

    def begin_shutdown(self) -> None:
        """Let /health answer 503 from now on, so that load balancers look elsewhere."""
        self.is_closing = True

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the fleet; at the end write what is pending and stop the engines."""
        await self.fleet.start()
        upkeep = asyncio.create_task(self._upkeep())
        try:
            yield
        finally:
            self.begin_shutdown()
            upkeep.cancel()
            await asyncio.gather(upkeep, return_exceptions=True)
            await self.fleet.close()
            if self.cache is not None:
                self.behind.run(self.cache.write_uses)
            self.behind.run(self.traces.close)
            await self.behind.drain()

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(CACHE_UPKEEP_S)
            if self.cache is not None:
                self.behind.run(self.cache.write_uses)


class CompletionEndpoint:
    """An ASGI application for one completion path."""

    def __init__(self, path: CallPath, endpoint: Endpoint) -> None:
        self._path = path
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._path.serve(self._endpoint, scope, receive, send)


def create_app(
    fleet: Fleet,
    cache: ExactCache | None,
    traces: TraceWriter,
    *,
    metrics: Metrics | None = None,
    settings: PathSettings | None = None,
) -> FastAPI:
    """Return the application. `cache` None: no exact cache. Its lifespan runs the fleet."""
    gateway = Gateway(fleet, cache, metrics or fleet.metrics, traces, settings or PathSettings())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(
        title="Quickmatch",
        lifespan=lifespan,
        exception_handlers={
            404: errors.not_found,
            405: errors.method_not_allowed,
            QuickmatchError: errors.quickmatch_error,
            Exception: errors.unexpected_error,
        },
    )
    app.state.gateway = gateway
    for path, endpoint in (("/v1/chat/completions", "chat"), ("/v1/completions", "completion")):
        handler = CompletionEndpoint(gateway.path, endpoint)  # type: ignore[arg-type]
        app.router.routes.append(HttpRoute(path, handler, methods=["POST"]))
    _add_pages(app, gateway)
    return app


def _add_pages(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """List every name that can be asked for."""
        models = [_model_json(model) for model in gateway.fleet.list_models()]
        return {"object": "list", "data": models}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        """Describe one model."""
        for model in gateway.fleet.list_models():
            if model.name == name:
                return _model_json(model)
        served = ", ".join(model.name for model in gateway.fleet.list_models()) or "nothing yet"
        raise ModelNotFound(f"no model named {name!r}; served are: {served}", param="model")

    @app.get("/health")
    async def health() -> Response:
        """Say whether this process is alive, and each deployment's state."""
        status = "shutting_down" if gateway.is_closing else "ok"
        body = {"status": status, "deployments": gateway.fleet.states()}
        return JSONResponse(body, status_code=503 if gateway.is_closing else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Answer a Prometheus scrape."""
        gateway.fleet.report()
        return Response(gateway.metrics.render(), media_type=CONTENT_TYPE)


def _model_json(model: ServedModel) -> dict[str, Any]:
    facts = asdict(model)
    return {
        "id": facts.pop("name"),
        "object": "model",
        "created": int(facts.pop("created_at")),
        "owned_by": "quickmatch",
        **facts,
    }
