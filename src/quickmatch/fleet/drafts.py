"""Trained heads of one deployment: from the desired versions to loaded ones, while it serves.

Owns `draft_status` in the deployment's document. Does not know how a backend loads, nor why a
head is wanted: the adaptation loop or a person writes that. A head changes no answer, so nothing
here is routed, leased or cached by; the engine swaps it in between two steps.
Invariant: a head that cannot be loaded leaves the one before it drafting, and the calls served. One
that the engine keeps dying with is left out.
"""

import asyncio
import logging

from quickmatch.core.clock import monotonic, wall
from quickmatch.core.errors import ConfigError, NotFound, QuickmatchError, Unavailable
from quickmatch.fleet.backend import Backend
from quickmatch.fleet.router import Entry
from quickmatch.store.documents import Deployment, DraftStatus, Model, ModelKind
from quickmatch.store.protocol import Store, require

log = logging.getLogger(__name__)


_Pair = tuple[str, str]  # head's version id, and that of the adapter ("": base) it drafts for
_MAX_DEATHS = 3  # of engines, one after the other, each soon after it was given a head
_SOON_S = 300.0


class DraftLoader:
    """Makes the loaded heads of one backend equal to the desired ones."""

    def __init__(
        self, store: Store, deployment: str, base: Model, backend: Backend, entry: Entry
    ) -> None:
        self._store = store
        self._deployment = deployment
        self._base = base
        self._backend = backend
        self._entry = entry
        self._loaded: dict[str, DraftStatus] = {}  # by adapter name, "" for the base model
        self._failed: dict[str, _Pair] = {}
        self._begun: dict[_Pair, float] = {}  # when this engine was given a head
        self._num_deaths: dict[_Pair, int] = {}
        self._told: dict[str, DraftStatus] = {}  # what the document says

    async def follow(self, desired: dict[str, str]) -> None:
        """Load what is wanted and not there, forget what is there and not wanted."""
        for name in [n for n in {**self._told, **self._loaded} if n not in desired]:
            self._failed.pop(name, None)
            await self._unload(name)
            await self._tell(name, None)
        for name, draft in desired.items():
            adapter = self._adapter(name)
            if adapter is None:
                await self._unload(name)
                text = f"adapter {name!r} is not loaded on {self._deployment!r}; load-lora it first"
                await self._tell(name, DraftStatus(draft=draft, state="FAILED", error=text))
                continue
            try:
                await self._load(name, draft, adapter)
            except Unavailable as error:  # the engine died: its keeper restarts it, we come again
                log.warning("draft %s: %s", draft, error.message)
                return

    def restarted(self) -> None:
        """The engine is a new process: nothing is loaded in it."""
        for pair, began in self._begun.items():
            is_soon = monotonic() - began < _SOON_S
            self._num_deaths[pair] = self._num_deaths.get(pair, 0) + 1 if is_soon else 0
        self._begun.clear()
        self._loaded.clear()
        self._failed.clear()

    def forget_failures(self, document: Deployment) -> bool:
        """Return whether a failed head is to be tried again: its status has been taken away."""
        failed = [name for name, status in self._told.items() if status.state == "FAILED"]
        again = [name for name in failed if name not in document.draft_status]
        for name in again:
            del self._told[name]
            pair = self._failed.pop(name, None)
            if pair is not None:
                self._num_deaths.pop(pair, None)
        return bool(again)

    def _adapter(self, name: str) -> str | None:
        if not name:
            return ""
        weights = self._entry.adapters.get(name)
        return None if weights is None else weights.version_id

    async def _load(self, name: str, draft: str, adapter: str) -> None:
        old = self._loaded.get(name)
        if old is not None and (old.draft, old.adapter) == (draft, adapter):
            self._failed.pop(name, None)  # one that failed may have been wanted in between
            await self._tell(name, old)
            return
        if self._failed.get(name) == (draft, adapter):
            return
        status = DraftStatus(draft=draft, adapter=adapter, state="LOADING")
        num_deaths = self._num_deaths.get((draft, adapter), 0)
        if num_deaths >= _MAX_DEATHS:
            await self._fail(
                name,
                status,
                f"the engine died {num_deaths} times in a row soon after it was loaded, so it is "
                "left out; quickmatch load-draft tries it again",
            )
            return
        await self._tell(name, status)
        began = self._begun[draft, adapter] = monotonic()
        try:
            path = await asyncio.to_thread(self._checked_path, draft)
            notes = await self._backend.load_draft(draft, path, adapter)
        except Unavailable:
            raise
        except QuickmatchError as error:
            await self._fail(name, status, error.message)
            return
        load_s = monotonic() - began
        log.info("draft %s drafts on %s after %.3f s", draft, self._deployment, load_s)
        timings = {"ready_at": wall(), "load_s": load_s, "swap_s": notes.get("swap_s")}
        self._loaded[name] = status.model_copy(update={"state": "READY", **timings})
        if old is not None and old.adapter != adapter:  # the adapter has a new version
            await self._forget(old)
        await self._tell(name, self._loaded[name])

    async def _fail(self, name: str, status: DraftStatus, reason: str) -> None:
        log.error("draft %s does not load: %s", status.draft, reason)
        self._failed[name] = status.draft, status.adapter
        await self._tell(name, status.model_copy(update={"state": "FAILED", "error": reason}))

    async def _unload(self, name: str) -> None:
        status = self._loaded.pop(name, None)
        if status is not None:
            await self._forget(status)

    async def _forget(self, status: DraftStatus) -> None:
        try:
            await self._backend.unload_draft(status.adapter)
        except QuickmatchError as error:  # it went with its adapter, or with the engine
            log.info("unloading draft %s: %s", status.draft, error.message)

    def _checked_path(self, draft: str) -> str:
        name, _, version = draft.rpartition("@")
        if not name or not version.isdigit():
            raise ConfigError(f"draft {draft!r} is not NAME@VERSION")
        try:
            model = require(self._store, Model, name)
        except NotFound as error:
            raise ConfigError(error.message) from error
        if model.model_kind is not ModelKind.DRAFT:
            raise ConfigError(f"{name!r} is a model of kind {model.model_kind}, not a draft")
        if not model.is_made_for(self._store.get(Model, self._base.id) or self._base):
            raise ConfigError(
                f"draft {name!r} was trained for {model.base_model!r}, but deployment "
                f"{self._deployment!r} serves {self._base.id!r}; load it on a deployment of that"
            )
        if not 1 <= int(version) <= model.version:
            raise ConfigError(
                f"draft {name!r} has no version {version}; the newest is {model.version}"
            )
        return model.path_of(int(version))

    async def _tell(self, name: str, status: DraftStatus | None) -> None:
        if self._told.get(name) == status:
            return

        def change(document: Deployment) -> None:
            others = {n: s for n, s in document.draft_status.items() if n != name}
            document.draft_status = others if status is None else {**others, name: status}

        try:
            await asyncio.to_thread(self._store.update, Deployment, self._deployment, change)
        except QuickmatchError as error:
            log.warning("cannot write deployment %s: %s", self._deployment, error.message)
            return
        if status is None:
            self._told.pop(name, None)
        else:
            self._told[name] = status
