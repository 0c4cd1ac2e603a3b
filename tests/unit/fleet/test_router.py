"""Names to routes."""

import pytest

from quickmatch.core.errors import ModelNotFound, Unavailable
from quickmatch.fleet.router import Entry, Router, Weights
from tests.unit.fleet.fake_backend import FakeBackend


def weights(name: str, version: int = 1, *, is_adapter: bool = False) -> Weights:
    version_id = f"{name}@{version}"
    return Weights(name, version_id, version_id if is_adapter else None, version_id)


@pytest.fixture
def entries() -> dict[str, Entry]:
    prod = Entry("prod", "base", FakeBackend(), weights("base"), status="READY")
    prod.adapters = {"red": weights("red", 3, is_adapter=True)}
    test = Entry("test", "base", FakeBackend(), weights("base"), status="READY", trace=True)
    test.adapters = {"red": weights("red", 4, is_adapter=True)}
    return {"prod": prod, "test": test}


@pytest.mark.parametrize(
    ("name", "deployment", "version_id", "adapter"),
    [
        ("prod", "prod", "base@1", None),
        ("test", "test", "base@1", None),
        ("base", "prod", "base@1", None),
        ("base#test", "test", "base@1", None),
        ("red", "prod", "red@3", "red@3"),
        ("red#test", "test", "red@4", "red@4"),
        ("red#base", "prod", "red@3", "red@3"),
    ],
)
def test_names(
    entries: dict[str, Entry], name: str, deployment: str, version_id: str, adapter: str | None
) -> None:
    route = Router(entries).resolve(name)
    assert (route.deployment, route.version_id, route.adapter) == (deployment, version_id, adapter)
    assert route.trace is (deployment == "test")


@pytest.mark.parametrize("name", ["", "nobody", "red#nowhere", "prod#test", "#"])
def test_unknown_names_list_what_is_served(entries: dict[str, Entry], name: str) -> None:
    with pytest.raises(ModelNotFound, match="served are: prod, base, red, test"):
        Router(entries).resolve(name)


def test_nothing_served_says_so() -> None:
    with pytest.raises(ModelNotFound, match="nothing is served yet"):
        Router({}).resolve("tiny")


def test_a_deployment_that_is_not_ready_is_unavailable(entries: dict[str, Entry]) -> None:
    for entry in entries.values():
        assert isinstance(entry.backend, FakeBackend)
        entry.backend.is_ready = False
    entries["prod"].status = "RESTARTING"
    for name in ("base", "red", "prod"):
        with pytest.raises(Unavailable, match="'prod' is RESTARTING"):
            Router(entries).resolve(name)


def test_a_ready_deployment_stands_in_for_one_that_is_not(entries: dict[str, Entry]) -> None:
    assert isinstance(entries["prod"].backend, FakeBackend)
    entries["prod"].backend.is_ready = False
    assert Router(entries).resolve("red").version_id == "red@4"


def test_an_adapter_on_its_way_is_unavailable_not_unknown(entries: dict[str, Entry]) -> None:
    entries["prod"].expected = {"green"}
    with pytest.raises(Unavailable):
        Router(entries).resolve("green")


def test_a_lease_counts(entries: dict[str, Entry]) -> None:
    route = Router(entries).resolve("red")
    with route.lease(), route.lease():
        assert route.weights.num_leases == 2
    assert route.weights.num_leases == 0
