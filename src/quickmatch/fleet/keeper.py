"""One deployment's keeper: starts its backend, repairs it, and follows its desired adapters.

Owns the life of one backend and what its document says about it. Loading order is the point: a
new adapter version is loaded beside the old one, the route switches between two awaits, and the
old one is unloaded when the last call that holds a lease on it has ended. So no call fails, and
no call mixes two versions.
Invariant: an adapter is in `entry.adapters` only while its backend has it loaded.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from quickmatch.core.clock import monotonic, wall
from quickmatch.core.errors import ConfigError, NotFound, QuickmatchError, Unavailable
from quickmatch.fleet.adapters import AdapterLoader
from quickmatch.fleet.backend import Backend
from quickmatch.fleet.drafts import DraftLoader
from quickmatch.fleet.recall import Recall
from quickmatch.fleet.router import Entry, Weights
from quickmatch.observe.metrics import Metrics
from quickmatch.store.documents import Deployment, DeploymentState, Model
from quickmatch.store.protocol import Store, require

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperSettings:
    """Patience."""

    backoff_s: float = 0.25  # before the second start; doubles
    max_backoff_s: float = 15.0
    info_every_s: float = 5.0  # how often engine_info is written


class Keeper:
    """Runs until it is cancelled; then its backend is closed."""

    def __init__(
        self,
        store: Store,
        document: Deployment,
        entry: Entry,
        make_backend: Callable[[Deployment, Model], Backend],
        *,
        metrics: Metrics,
        settings: KeeperSettings,
    ) -> None:
        self._store = store
        self._wanted = document
        self._entry = entry
        self._make_backend = make_backend
        self._metrics = metrics
        self._settings = settings
        self._changed = asyncio.Event()
        self._base: Weights | None = None
        self._loader: AdapterLoader | None = None
        self._drafts: DraftLoader | None = None
        self._info: dict[str, object] = {}

    def want(self, document: Deployment) -> None:
        """Take the newest desired state."""
        loaders = [loader for loader in (self._loader, self._drafts) if loader is not None]
        retries = [loader.forget_failures(document) for loader in loaders]
        wanted = self._wanted.adapters, self._wanted.drafts
        if any(retries) or (document.adapters, document.drafts) != wanted:
            self._changed.set()
        self._entry.trace = document.trace
        adapts = document.speculation.get("adapt")
        self._entry.adaptation = document.adaptation if adapts else None
        self._wanted = document

    async def run(self) -> None:
        """Start the backend and keep it; return only if it can never start."""
        name = self._wanted.id
        try:
            model = await asyncio.to_thread(require, self._store, Model, self._wanted.model)
            backend = self._make_backend(self._wanted, model)
        except (ConfigError, NotFound) as error:
            await self._write_state(DeploymentState.FAILED, error.message)
            return
        loader = self._loader = AdapterLoader(self._store, name, model, backend, self._entry)
        drafts = self._drafts = DraftLoader(self._store, name, model, backend, self._entry)
        recall = Recall(self._store, name, backend, self._entry)
        self._entry.backend = backend
        self._base = _base_weights(model, self._wanted)
        try:
            if await self._start(backend, DeploymentState.STARTING):
                await self._keep(backend, loader, drafts, recall)
        finally:
            self._entry.base = None
            await recall.close()
            await loader.close()
            await backend.close()

    async def _keep(
        self, backend: Backend, loader: AdapterLoader, drafts: DraftLoader, recall: Recall
    ) -> None:
        deaths = asyncio.create_task(backend.died())
        try:
            while True:
                if deaths.done():
                    log.error("deployment %s: %s", self._wanted.id, deaths.result())
                    if not await self._start(backend, DeploymentState.RESTARTING):
                        return
                    deaths = asyncio.create_task(backend.died())
                    drafts.restarted()
                    await recall.restarted()
                self._changed.clear()
                await loader.follow(dict(self._wanted.adapters))
                await drafts.follow(dict(self._wanted.drafts))
                recall.follow()
                await self._write_info(backend)
                await self._wait(deaths)
        finally:
            deaths.cancel()

    async def _wait(self, deaths: asyncio.Task[str]) -> None:
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait(
                {deaths, changed},
                timeout=self._settings.info_every_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            changed.cancel()

    async def _start(self, backend: Backend, state: DeploymentState) -> bool:
        """Start until it runs. False: it never will, and the document says why."""
        backoff_s = self._settings.backoff_s
        error_text = ""
        while True:
            await self._write_state(state, error_text, restarts=state == DeploymentState.RESTARTING)
            began = monotonic()
            try:
                await backend.start()
            except (ConfigError, Unavailable) as error:
                # What ran before may run again (memory was short, a disk was away): keep trying.
                if isinstance(error, ConfigError) and self._entry.base is None:
                    await self._write_state(DeploymentState.FAILED, error.message)
                    return False
                log.warning("deployment %s did not start: %s", self._wanted.id, error.message)
                error_text = error.message
                state = DeploymentState.RESTARTING
            else:
                log.info("deployment %s ready in %.1f s", self._wanted.id, monotonic() - began)
                self._entry.base = self._base  # before the document says READY: people watch it
                await self._write_state(DeploymentState.READY, info=backend.info)
                return True
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, self._settings.max_backoff_s)

    async def _write_state(
        self,
        state: DeploymentState,
        error: str = "",
        *,
        restarts: bool = False,
        info: dict[str, object] | None = None,
    ) -> None:
        self._entry.status = f"{state}: {error}" if error else str(state)
        if restarts:
            self._metrics.engine_restarts.labels(self._wanted.id).inc()

        def change(document: Deployment) -> None:
            document.state = state
            document.error = error
            document.num_restarts += restarts
            document.ready_at = wall() if state == DeploymentState.READY else document.ready_at
            document.engine_info = {**document.engine_info, **(info or {})}

        await self._update(change)

    async def _write_info(self, backend: Backend) -> None:
        info = backend.info
        if info == self._info:
            return
        self._info = info

        def change(document: Deployment) -> None:
            document.engine_info = {**document.engine_info, **info}

        await self._update(change)

    async def _update(self, change: Callable[[Deployment], None]) -> None:
        try:
            await asyncio.to_thread(self._store.update, Deployment, self._wanted.id, change)
        except NotFound:
            log.info("deployment %s was deleted", self._wanted.id)
        except QuickmatchError as error:  # the deployment serves on; its document is behind
            log.warning("cannot write deployment %s: %s", self._wanted.id, error.message)


def _base_weights(model: Model, deployment: Deployment) -> Weights:
    return Weights(
        model=model.id,
        version_id=model.version_id,
        adapter=None,
        fingerprint=fingerprint(model, model.version, deployment.engine),
        created_at=model.created_at,
    )


def fingerprint(model: Model, version: int, engine: dict[str, object]) -> str:
    """Return what the answers of these weights are cached under: version, origin, engine settings.

    Not speculation's, which changes when tokens come and never which. The time of creation tells a
    deleted and newly made model of the same name and version apart.
    """
    return f"{model.id}@{version} {model.created_at!r} {sorted(engine.items())!r}"
