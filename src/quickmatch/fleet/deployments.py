"""The reconciler: reads which deployments are wanted, and has a keeper look after each.

Owns the set of keepers. Polls the store's version, a cheap number, and reads documents only when
something has been written. Knows nothing of engines: a factory makes the backends.
Invariant: one keeper a deployment; a keeper that is stopped has closed its backend.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from quickmatch.core.clock import monotonic
from quickmatch.core.speculation_settings import engine_part
from quickmatch.fleet.backend import Backend
from quickmatch.fleet.keeper import Keeper, KeeperSettings
from quickmatch.fleet.ownership import claim, is_free, mark_stopped, release
from quickmatch.fleet.router import Entry
from quickmatch.observe.metrics import Metrics
from quickmatch.store.documents import Deployment, DeploymentState, Model
from quickmatch.store.protocol import Store

log = logging.getLogger(__name__)

BackendFactory = Callable[[Deployment, Model], Backend]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcilerSettings:
    """How often to look."""

    poll_s: float = 0.05
    error_pause_s: float = 1.0
    reread_s: float = 2.0  # also without a change: a dead server's deployments become free


@dataclass(slots=True)
class _Kept:
    keeper: Keeper
    task: asyncio.Task[None]
    spec: tuple[str, str, str]  # what the keeper was started for: model and engine's settings

    def is_asked_again(self, document: Deployment) -> bool:
        """Whether it failed for good and someone has put it back to PENDING since."""
        return self.task.done() and document.state == DeploymentState.PENDING


class Deployments:
    """Keeps what runs equal to what the documents ask for."""

    def __init__(
        self,
        store: Store,
        make_backend: BackendFactory,
        entries: dict[str, Entry],
        metrics: Metrics,
        *,
        url: str = "",
        settings: ReconcilerSettings | None = None,
        keeper_settings: KeeperSettings | None = None,
    ) -> None:
        self._store = store
        self._make_backend = make_backend
        self._entries = entries
        self._metrics = metrics
        self._url = url
        self._settings = settings or ReconcilerSettings()
        self._keeper_settings = keeper_settings or KeeperSettings()
        self._kept: dict[str, _Kept] = {}

    async def run(self) -> None:
        """Reconcile for ever. Errors are logged, and the next round tries again."""
        seen = -1
        read_at = float("-inf")
        while True:
            try:
                version = await asyncio.to_thread(self._store.version)
                if version != seen or monotonic() - read_at > self._settings.reread_s:
                    seen, read_at = version, monotonic()
                    await self.reconcile()
            except Exception:  # the loop's boundary: nothing may end it but cancellation
                log.exception("reconciling deployments failed")
                seen = -1
                await asyncio.sleep(self._settings.error_pause_s)
            await asyncio.sleep(self._settings.poll_s)

    async def reconcile(self) -> None:
        """Read all deployments once and start, inform or stop their keepers."""
        documents = await asyncio.to_thread(lambda: list(self._store.find(Deployment)))
        wanted = {d.id: d for d in documents if d.wanted}
        for document in documents:
            is_kept = document.id in self._kept
            if not (document.wanted or is_kept or document.state == DeploymentState.STOPPED):
                await asyncio.to_thread(mark_stopped, self._store, document.id)
        for name in [n for n in self._kept if n not in wanted]:
            self._entries.pop(name, None)  # no new call from here on
            await self._stop(name, DeploymentState.STOPPED)
        for name, document in wanted.items():
            kept = self._kept.get(name)
            if kept is not None and (kept.spec != _spec(document) or kept.is_asked_again(document)):
                await self._stop(name, DeploymentState.PENDING)
                kept = None
            if kept is not None:
                kept.keeper.want(document)
            elif is_free(document):
                await self._take_up(name)

    async def close(self) -> None:
        """Stop every keeper; the deployments wait for the next server."""
        stopping = [self._stop(name, DeploymentState.PENDING) for name in list(self._kept)]
        for outcome in await asyncio.gather(*stopping, return_exceptions=True):
            if isinstance(outcome, Exception):  # engines are gone; only a document is behind
                log.error("closing a deployment: %s", outcome)

    async def _take_up(self, name: str) -> None:
        document = await asyncio.to_thread(claim, self._store, name, self._url)
        if document is None:
            return
        entry = Entry(name, document.model, trace=document.trace, status="STARTING")
        self._entries[name] = entry
        keeper = Keeper(
            self._store,
            document,
            entry,
            self._make_backend,
            metrics=self._metrics,
            settings=self._keeper_settings,
        )
        task = asyncio.create_task(self._watch(name, keeper.run()))
        self._kept[name] = _Kept(keeper, task, _spec(document))

    async def _watch(self, name: str, keeping: Coroutine[Any, Any, None]) -> None:
        try:
            await keeping
        except Exception:  # a keeper's own fault must not end the others
            log.exception("deployment %s: its keeper failed", name)
            told = "internal error; the server's log has the details"
            if name in self._entries:
                self._entries[name].status = f"FAILED: {told}"
            await asyncio.to_thread(release, self._store, name, DeploymentState.FAILED, told)

    async def _stop(self, name: str, state: DeploymentState) -> None:
        kept = self._kept.pop(name)
        kept.task.cancel()
        await asyncio.gather(kept.task, return_exceptions=True)
        self._entries.pop(name, None)
        await asyncio.to_thread(release, self._store, name, state)


def _spec(document: Deployment) -> tuple[str, str, str]:
    speculation = engine_part(document.speculation)
    return document.model, repr(sorted(document.engine.items())), repr(sorted(speculation.items()))
