"""What stands behind a deployment: something that answers calls with deltas, then the usage.

Owns the protocol only. A backend knows the model that it serves and nothing of names, routes,
caches or HTTP requests; it is started, stopped and repaired by the keeper of its deployment.
Invariant of `stream`: for each choice, deltas in order, the last with a finish reason; then one
Usage, the last item of all. Closing the iterator early stops the work behind it.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from quickmatch.core.call import Call
from quickmatch.core.completion import Delta, Usage


@dataclass(slots=True)
class Notes:
    """What a backend learns about a call that is no part of its answer. Written by the backend."""

    queue_s: float | None = None  # from arrival at the engine to first being scheduled
    num_retries: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """Which weights answer a call, and a place for notes on it. Made anew for every call."""

    version_id: str  # "name@version" of the model or adapter that answers
    adapter: str | None = None  # adapter version id, None for the base model
    notes: Notes = field(default_factory=Notes)


@dataclass(frozen=True, slots=True)
class PastAnswer:
    """What a call was answered, one choice of it."""

    call: Call
    text: str


class Backend(Protocol):
    """One running source of completions. Raises QuickmatchError kinds only."""

    @property
    def is_ready(self) -> bool:
        """Whether a call made now would be taken."""

    @property
    def info(self) -> dict[str, Any]:
        """Facts for people: process id, memory, device; kept in the deployment's document."""

    async def start(self) -> None:
        """Start, or start again after a death. Raises ModelLoadError or ConfigError for good,
        Unavailable where another try may succeed."""

    def stream(self, call: Call, target: Target) -> AsyncGenerator[Delta | Usage, None]:
        """Answer one call."""

    async def load_adapter(self, adapter: str, path: str) -> None:
        """Load an adapter under its version id. Raises ModelLoadError with the reason."""

    async def unload_adapter(self, adapter: str) -> None:
        """Forget an adapter."""

    async def load_draft(self, draft: str, path: str, adapter: str) -> dict[str, Any]:
        """Draft with a trained head, in place of the one that stood for the same `adapter`.

        draft: its version id. adapter: version id of the adapter whose answers it foretells, ""
        for the base model's. Returns notes, `swap_s` among them. Raises ConfigError where this
        backend cannot, ModelLoadError where this head cannot.
        """

    async def unload_draft(self, adapter: str) -> None:
        """Forget the head that stands for `adapter`. Raises ConfigError if there is none."""

    @property
    def max_remembered_tokens(self) -> int:
        """How many tokens of past answers it can draft from; 0: it does not."""

    async def remember(self, answers: Sequence[PastAnswer], *, adapter: str | None) -> None:
        """Draft from past answers of these weights, oldest first, for calls of the same tenant
        and isolation key."""

    async def died(self) -> str:
        """Return, once the backend has gone down by itself, why. Waits for ever otherwise."""

    async def close(self) -> None:
        """Stop, and end its process. May be called twice."""
