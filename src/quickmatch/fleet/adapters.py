"""Adapters of one deployment: from the desired versions to loaded ones, without a failed call.

Owns the order load new → switch route → unload old, and `adapter_status` in the deployment's
document. Does not know how a backend loads; it calls it.
Invariant: what is in `entry.adapters` is loaded; what is being unloaded has no lease and no route.
"""

import asyncio
import logging

from quickmatch.core.clock import monotonic, wall
from quickmatch.core.errors import ModelLoadError, NotFound, QuickmatchError, Unavailable
from quickmatch.fleet.backend import Backend
from quickmatch.fleet.router import Entry, Weights
from quickmatch.store.documents import AdapterStatus, Deployment, Model, ModelKind
from quickmatch.store.protocol import Store, require

log = logging.getLogger(__name__)

LEASE_POLL_S = 0.02  # how often a retired version is looked at for calls still using it


class AdapterLoader:
    """Makes the loaded adapters of one backend equal to the desired ones."""

    def __init__(
        self, store: Store, deployment: str, base: Model, backend: Backend, entry: Entry
    ) -> None:
        self._store = store
        self._deployment = deployment
        self._base = base
        self._backend = backend
        self._entry = entry
        self._failed: dict[str, int] = {}  # adapter name -> version that would not load
        self._retiring: dict[str, asyncio.Task[None]] = {}  # by version id

    async def follow(self, desired: dict[str, int]) -> None:
        """Load what is wanted and not there, then let go of what is there and not wanted."""
        live = self._entry.adapters
        for name in [n for n in live if n not in desired]:
            self._start_retiring(live.pop(name), clear_status=name)
        for name in [n for n, version in self._failed.items() if desired.get(n) != version]:
            del self._failed[name]
            await self._write_status(name, None)
        missing = {n: v for n, v in desired.items() if not self._has(n, v)}
        self._entry.expected = set(missing) - set(live)
        for name, version in missing.items():
            try:
                await self._load(name, version)
            except Unavailable as error:  # the engine died: its keeper restarts it, we come again
                log.warning("adapter %s@%d: %s", name, version, error.message)
                return
            finally:
                self._entry.expected.discard(name)

    def forget_failures(self, document: Deployment) -> bool:
        """Return whether a failed adapter is to be tried again: its status has been taken away."""
        again = [name for name in self._failed if name not in document.adapter_status]
        for name in again:
            del self._failed[name]
        return bool(again)

    async def close(self) -> None:
        """Drop routes and pending unloads; the backend is about to be closed."""
        self._entry.adapters.clear()
        for task in self._retiring.values():
            task.cancel()
        await asyncio.gather(*self._retiring.values(), return_exceptions=True)

    def _has(self, name: str, version: int) -> bool:
        live = self._entry.adapters.get(name)
        loaded = live is not None and live.version_id == f"{name}@{version}"
        return loaded or self._failed.get(name) == version

    async def _load(self, name: str, version: int) -> None:
        version_id = f"{name}@{version}"
        await self._write_status(name, AdapterStatus(version=version, state="LOADING"))
        if (pending := self._retiring.get(version_id)) is not None:
            await asyncio.wait([pending])  # asked for again while it was being unloaded
        began = monotonic()
        try:
            model = await asyncio.to_thread(self._checked_model, name, version)
            await self._backend.load_adapter(version_id, model.path_of(version))
        except Unavailable:
            raise
        except QuickmatchError as error:
            log.error("adapter %s does not load: %s", version_id, error.message)
            failed = AdapterStatus(version=version, state="FAILED", error=error.message)
            await self._write_status(name, failed)
            self._failed[name] = version
            return
        load_s = monotonic() - began
        old = self._entry.adapters.get(name)
        self._entry.adapters[name] = self._weights(model, version)  # the switch
        log.info("adapter %s ready on %s in %.3f s", version_id, self._deployment, load_s)
        ready = AdapterStatus(version=version, state="READY", ready_at=wall(), load_s=load_s)
        await self._write_status(name, ready)
        if old is not None:
            self._start_retiring(old)

    def _start_retiring(self, weights: Weights, *, clear_status: str = "") -> None:
        unloading = self._unload(weights, clear_status)
        self._retiring[weights.version_id] = asyncio.create_task(unloading)

    async def _unload(self, weights: Weights, clear_status: str) -> None:
        """Unload once no call uses it; then, if nothing replaced it, take its status away."""
        if clear_status:
            version = int(weights.version_id.rpartition("@")[2])
            status = AdapterStatus(version=version, state="UNLOADING")
            await self._write_status(clear_status, status)
        try:
            while weights.num_leases:
                await asyncio.sleep(LEASE_POLL_S)
            await self._backend.unload_adapter(weights.version_id)
        except QuickmatchError as error:  # a dead engine has forgotten it anyway
            log.warning("unloading %s: %s", weights.version_id, error.message)
        finally:
            self._retiring.pop(weights.version_id, None)
        if clear_status:
            await self._write_status(clear_status, None, only_if="UNLOADING")

    def _checked_model(self, name: str, version: int) -> Model:
        try:
            model = require(self._store, Model, name)
        except NotFound as error:
            raise ModelLoadError(error.message) from error
        if model.model_kind is not ModelKind.ADAPTER:
            raise ModelLoadError(f"{name!r} is a {model.model_kind} model, not an adapter")
        if model.base_model and not model.is_made_for(self._newest_base()):
            raise ModelLoadError(
                f"adapter {name!r} was trained on {model.base_model!r}, but deployment "
                f"{self._deployment!r} serves {self._base.id!r}; load it on a deployment of its "
                "own base"
            )
        if version > model.version:
            raise ModelLoadError(
                f"adapter {name!r} has no version {version}; the newest is {model.version}"
            )
        return model

    def _newest_base(self) -> Model:
        """What it was quantized from may have been found out since the server started."""
        return self._store.get(Model, self._base.id) or self._base

    def _weights(self, model: Model, version: int) -> Weights:
        version_id = f"{model.id}@{version}"
        return Weights(
            model=model.id,
            version_id=version_id,
            adapter=version_id,
            fingerprint=f"{version_id} {model.created_at!r} on {self._fingerprint_of_base()}",
            created_at=model.created_at,
        )

    def _fingerprint_of_base(self) -> str:
        return self._entry.base.fingerprint if self._entry.base else self._base.version_id

    async def _write_status(
        self, name: str, status: AdapterStatus | None, *, only_if: str = ""
    ) -> None:
        def change(document: Deployment) -> None:
            known = document.adapter_status.get(name)
            if only_if and (known is None or known.state != only_if):
                return
            others = {n: s for n, s in document.adapter_status.items() if n != name}
            document.adapter_status = others if status is None else {**others, name: status}

        try:
            await asyncio.to_thread(self._store.update, Deployment, self._deployment, change)
        except QuickmatchError as error:
            log.warning("cannot write deployment %s: %s", self._deployment, error.message)
