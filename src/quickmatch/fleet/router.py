"""From the name in a request to the deployment, the weights and the backend that answer it.

Owns the table of what is served and how names are read: a deployment's name, a base or remote
model's name, an adapter's name, `adapter#deployment`. Does not know how anything is started.
Invariant: a route is a snapshot. Its version id, its adapter and its backend belong together, and
an adapter version stays loaded for as long as a lease on its route is held.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from quickmatch.core.errors import ModelNotFound, Unavailable
from quickmatch.fleet.backend import Backend, Target
from quickmatch.store.adaptation import Adaptation


@dataclass(slots=True, eq=False)
class Weights:
    """One version of a model or adapter that can be asked, and how many calls are using it."""

    model: str
    version_id: str  # "name@version"
    adapter: str | None  # adapter version id, None for the deployment's own model
    fingerprint: str  # also tells two models apart that bore the same name one after the other
    created_at: float = 0.0
    num_leases: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """Where a call goes."""

    deployment: str
    weights: Weights
    backend: Backend
    trace: bool  # the deployment records its calls

    @property
    def model(self) -> str:
        """The served model's or adapter's name."""
        return self.weights.model

    @property
    def version_id(self) -> str:
        """What caches and traces are keyed by."""
        return self.weights.version_id

    @property
    def adapter(self) -> str | None:
        """The adapter's version id, None for the base model."""
        return self.weights.adapter

    def target(self) -> Target:
        """Return a fresh target for one call."""
        return Target(self.weights.version_id, self.weights.adapter)

    @contextmanager
    def lease(self) -> Iterator["Route"]:
        """Keep these weights loaded while the block runs."""
        self.weights.num_leases += 1
        try:
            yield self
        finally:
            self.weights.num_leases -= 1


@dataclass(slots=True)
class Entry:
    """What the router knows of one deployment. Written by its keeper, between two awaits."""

    deployment: str
    model: str
    backend: Backend | None = None
    base: Weights | None = None  # None until it is ready once
    adapters: dict[str, Weights] = field(default_factory=dict)  # by adapter name, all loaded
    expected: set[str] = field(default_factory=set)  # adapters wanted, not loaded yet
    trace: bool = False
    adaptation: Adaptation | None = None  # for /metrics; None: it does not adapt
    status: str = "PENDING"  # for messages: the deployment's state, and its error


class Router:
    """The table of entries, read by every call."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries

    def resolve(self, name: str) -> Route:
        """Return the route for a name.

        Raises ModelNotFound with what is served, Unavailable while the deployment is not ready.
        """
        model, _, deployment = name.partition("#")
        entries = [
            entry
            for entry in self._entries.values()
            if not deployment or deployment in (entry.deployment, entry.model)
        ]
        candidates = [(e, w) for e in entries if (w := _weights(e, model)) is not None]
        ready = [(e, w) for e, w in candidates if e.backend is not None and e.backend.is_ready]
        if ready:
            entry, weights = ready[0]
            assert entry.backend is not None
            return Route(entry.deployment, weights, entry.backend, entry.trace)
        waiting = [e for e, _ in candidates] + [e for e in entries if _is_called(e, model)]
        if waiting:
            raise Unavailable(_why_not(waiting[0], model), param="model")
        raise ModelNotFound(self._unknown(name), param="model")

    def names(self) -> list[str]:
        """Return every name that can be asked for now."""
        found: dict[str, None] = {}
        for entry in self._entries.values():
            if entry.base is not None:
                found[entry.deployment] = None
                found[entry.model] = None
            found.update(dict.fromkeys(entry.adapters))
        return list(found)

    def _unknown(self, name: str) -> str:
        served = self.names()
        if not served:
            return f"no model named {name!r}; nothing is served yet, see `quickmatch deploy`"
        return f"no model named {name!r}; served are: {', '.join(served[:20])}"


def _why_not(entry: Entry, model: str) -> str:
    if model in entry.expected:
        return f"adapter {model!r} is being loaded; try again in a moment"
    # An engine that has just died: its keeper has not told yet.
    status = "RESTARTING" if entry.status == "READY" else entry.status
    return (
        f"deployment {entry.deployment!r} is {status}; "
        "try again in a moment, or see `quickmatch get deployments`"
    )


def _is_called(entry: Entry, model: str) -> bool:
    return model in (entry.deployment, entry.model) or model in entry.expected


def _weights(entry: Entry, model: str) -> Weights | None:
    # An adapter wins over a deployment of the same name: whoever loads one asks for it by name.
    own = entry.base if model in (entry.deployment, entry.model) else None
    return entry.adapters.get(model) or own
