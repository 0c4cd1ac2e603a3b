"""The fleet: the deployments, the router over them, and the backends behind both, as one thing.

Owns the wiring and the life from start to close. The gateway sees nothing else of this package.
Invariant: after `close` no engine process of this fleet is left.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quickmatch.core.settings import Home
from quickmatch.fleet.backend import Backend
from quickmatch.fleet.deployments import BackendFactory, Deployments, ReconcilerSettings
from quickmatch.fleet.keeper import KeeperSettings
from quickmatch.fleet.router import Entry, Route, Router, Weights
from quickmatch.observe.metrics import Metrics
from quickmatch.store.documents import Deployment, Model, ModelKind
from quickmatch.store.protocol import Store


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that can be asked for now."""

    name: str
    version_id: str
    deployment: str
    parent: str | None  # adapter: the base model's name
    created_at: float
    max_model_len: int | None


class Fleet:
    """Everything that this process serves."""

    def __init__(
        self,
        store: Store,
        home: Home,
        *,
        metrics: Metrics | None = None,
        url: str = "",
        make_backend: BackendFactory | None = None,
        reconciler: ReconcilerSettings | None = None,
        keeper: KeeperSettings | None = None,
    ) -> None:
        """`url`: where people reach the gateway, ending in /v1; kept in deployments' documents.

        `make_backend`: what makes the backend of a deployment; by default an embedded engine for
        a base model and a client for a remote one.
        """
        self.metrics = metrics or Metrics()
        self._entries: dict[str, Entry] = {}
        self._router = Router(self._entries)
        self._deployments = Deployments(
            store,
            make_backend or default_factory(home, store),
            self._entries,
            self.metrics,
            url=url,
            settings=reconciler,
            keeper_settings=keeper,
        )
        self._reconciling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to reconcile. Returns at once; deployments become ready in the background."""
        if self._reconciling is None:
            self._reconciling = asyncio.create_task(self._deployments.run())

    def resolve(self, name: str) -> Route:
        """Return where a call for this name goes. Raises ModelNotFound or Unavailable."""
        return self._router.resolve(name)

    def states(self) -> dict[str, str]:
        """Return each deployment's state, for /health."""
        return {name: entry.status for name, entry in self._entries.items()}

    def list_models(self) -> list[ServedModel]:
        """Return every name that can be asked for, with what answers it."""
        models: dict[str, ServedModel] = {}
        for entry in self._entries.values():
            if entry.base is None:
                continue
            for name in (entry.deployment, entry.model):
                models.setdefault(name, _served(name, entry, entry.base))
            for name, weights in entry.adapters.items():
                models[name] = _served(name, entry, weights)
        return list(models.values())

    def report(self) -> None:
        """Set the metrics of engines and adaptation from the newest facts; called at a scrape."""
        for name, entry in self._entries.items():
            stats = entry.backend.info.get("stats", {}) if entry.backend is not None else {}
            self.metrics.set_engine(name, stats, num_adapters=len(entry.adapters))
            self.metrics.adaptation.set(name, entry.adaptation)
        self.metrics.keep_engines(self._entries)

    async def close(self) -> None:
        """Stop serving and end every engine process."""
        if self._reconciling is not None:
            self._reconciling.cancel()
            await asyncio.gather(self._reconciling, return_exceptions=True)
            self._reconciling = None
        await self._deployments.close()


def default_factory(home: Home, store: Store) -> Callable[[Deployment, Model], Backend]:
    """Return the factory of real backends."""

    def make(deployment: Deployment, model: Model) -> Backend:
        # Here and not above: an engine starts before httpx is read, which it does not need, and
        # the embedded backend is the only way to the engine package.
        if model.model_kind is ModelKind.REMOTE:
            from quickmatch.fleet.remote import RemoteBackend, RemoteSettings

            return RemoteBackend(RemoteSettings.of(model))
        from quickmatch.fleet.embedded import EmbeddedBackend

        source = deployment.speculation.get("draft_model")
        draft = store.get(Model, source) if isinstance(source, str) and source else None
        return EmbeddedBackend.for_deployment(deployment, model, home, draft_model=draft)

    return make


def _served(name: str, entry: Entry, weights: Weights) -> ServedModel:
    info: dict[str, Any] = entry.backend.info if entry.backend is not None else {}
    return ServedModel(
        name=name,
        version_id=weights.version_id,
        deployment=entry.deployment,
        parent=entry.model if weights.adapter else None,
        created_at=weights.created_at,
        max_model_len=info.get("max_model_len"),
    )
