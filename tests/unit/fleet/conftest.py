"""A fleet over fake backends and a real store on disk."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from quickmatch.core.settings import Home
from quickmatch.fleet import Fleet
from quickmatch.fleet.deployments import ReconcilerSettings
from quickmatch.fleet.keeper import KeeperSettings
from quickmatch.store.documents import Deployment, DraftStatus, Model, ModelKind
from quickmatch.store.open import open_store
from quickmatch.store.protocol import Store, require
from tests.unit.fleet.fake_backend import FakeBackend

FAST = ReconcilerSettings(poll_s=0.005, reread_s=0.05)
IMPATIENT = KeeperSettings(backoff_s=0.01, max_backoff_s=0.02, info_every_s=0.02)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(Home(tmp_path))
    opened.insert(Model(id="tiny", created_at=1.0, model_kind=ModelKind.BASE, path="/tiny"))
    for name in ("red", "blue"):
        adapter = Model(
            id=name,
            created_at=2.0,
            model_kind=ModelKind.ADAPTER,
            path=f"/models/{name}/1",
            base_model="tiny",
        )
        opened.insert(adapter)
    head = Model(
        id="head",
        created_at=3.0,
        model_kind=ModelKind.DRAFT,
        path="/models/head/2",
        version=2,
        base_model="tiny",
    )
    opened.insert(head)
    yield opened
    opened.close()


@dataclass
class Harness:
    """A fleet, what it made, and shorthands for what a user writes."""

    store: Store
    fleet: Fleet
    backends: list[FakeBackend] = field(default_factory=list)
    prepare: Callable[[FakeBackend], None] = lambda _: None  # before one is started

    def deployment(self, name: str = "tiny") -> Deployment:
        return require(self.store, Deployment, name)

    def change(self, **fields: object) -> None:
        def apply(document: Deployment) -> None:
            for name, value in fields.items():
                setattr(document, name, value)

        self.store.update(Deployment, "tiny", apply)

    async def until(self, is_so: Callable[[], bool], timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not is_so():
                await asyncio.sleep(0.005)

    async def until_state(self, state: str) -> Deployment:
        await self.until(lambda: self.deployment().state == state)
        return self.deployment()

    async def until_adapter(self, name: str, version: int, state: str = "READY") -> None:
        def is_so() -> bool:
            status = self.deployment().adapter_status.get(name)
            return status is not None and (status.version, status.state) == (version, state)

        await self.until(is_so)

    async def until_draft(self, draft: str, state: str = "READY", adapter: str = "") -> DraftStatus:
        def is_so() -> bool:
            status = self.deployment().draft_status.get(adapter)
            return status is not None and (status.draft, status.state) == (draft, state)

        await self.until(is_so)
        return self.deployment().draft_status[adapter]


@pytest.fixture
async def harness(store: Store, tmp_path: Path) -> AsyncIterator[Harness]:
    backends: list[FakeBackend] = []

    def make(_: Deployment, __: Model) -> FakeBackend:
        backends.append(FakeBackend())
        made.prepare(backends[-1])
        return backends[-1]

    fleet = Fleet(
        store,
        Home(tmp_path),
        url="http://test/v1",
        make_backend=make,
        reconciler=FAST,
        keeper=IMPATIENT,
    )
    made = Harness(store, fleet, backends)
    await fleet.start()
    yield made
    await fleet.close()
