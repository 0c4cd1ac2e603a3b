"""A gateway over fake backends, reached in process: no socket, no engine."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from quickmatch.caching import ExactCache
from quickmatch.core.settings import Home
from quickmatch.fleet import Fleet
from quickmatch.fleet.deployments import ReconcilerSettings
from quickmatch.gateway import PathSettings, create_app
from quickmatch.observe import Metrics, TraceWriter
from quickmatch.store.documents import Deployment, Model, ModelKind
from quickmatch.store.open import open_store
from quickmatch.store.protocol import Store
from tests.unit.fleet.fake_backend import FakeBackend


@dataclass
class Served:
    """A running gateway."""

    client: httpx.AsyncClient
    app: FastAPI
    backend: FakeBackend
    store: Store
    traces: TraceWriter
    fleet: Fleet

    async def chat(self, content: str = "hello", **fields: object) -> httpx.Response:
        """Post one chat request, greedy unless asked otherwise."""
        headers = fields.pop("headers", None)
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            **fields,
        }
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)  # type: ignore[arg-type]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    store = open_store(Home(tmp_path))
    store.insert(Model(id="tiny", created_at=1.0, model_kind=ModelKind.BASE, path="/tiny"))
    store.insert(Deployment(id="tiny", created_at=1.0, model="tiny"))
    backend = FakeBackend()
    metrics = Metrics()
    fleet = Fleet(
        store,
        Home(tmp_path),
        metrics=metrics,
        make_backend=lambda *_: backend,
        reconciler=ReconcilerSettings(poll_s=0.005),
    )
    traces = TraceWriter(store, metrics)
    settings = PathSettings(max_body_bytes=10_000, request_timeout_s=2.0)
    app = create_app(fleet, ExactCache(store), traces, settings=settings)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app):
        async with asyncio.timeout(5):
            while not fleet.list_models():
                await asyncio.sleep(0.005)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield Served(client, app, backend, store, traces, fleet)
    store.close()
