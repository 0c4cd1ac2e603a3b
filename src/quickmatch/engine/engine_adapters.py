"""The adapters of a running engine: loaded, taken by sequences, brought to memory, given up.

Owns the order of it: what is asked of the runner (which holds weights) and what is noted in the
leases (which count). It does not know requests or steps.
"""

from typing import Any, Protocol

from quickmatch.core.errors import ConfigError
from quickmatch.engine.adapter_leases import AdapterLeases
from quickmatch.engine.reader import Room


class AdapterRunner(Protocol):
    """What adapters need of the model side."""

    @property
    def max_adapters(self) -> int:
        """Adapters that may be in memory at once."""

    @property
    def num_adapters(self) -> int:
        """Adapters in memory."""

    def read_adapter(self, path: str) -> Any:
        """Read an adapter, changing nothing; in any thread. Raises ConfigError."""

    def put_adapter(self, adapter_id: str, adapter: Any) -> dict[str, Any]:
        """Let sequences use an adapter that was read; return what is worth telling."""

    def unload_adapter(self, adapter_id: str, *, keeps_head: bool = False) -> None:
        """Forget an adapter, its head too unless it is to come back.

        No sequence of a later batch uses its row.
        """

    def adapter_row(self, adapter_id: str) -> int:
        """Return its row; it stays the same while loaded. KeyError if unknown."""


class EngineAdapters:
    """One engine's."""

    def __init__(self, runner: AdapterRunner) -> None:
        self._runner = runner
        self._leases = AdapterLeases()

    @property
    def available(self) -> list[str]:
        """Adapters that new sequences may use."""
        return self._leases.available

    def is_available(self, adapter: str) -> bool:
        """Whether new sequences may use it."""
        return self._leases.is_available(adapter)

    def why_not(self, adapter: str) -> str:
        """Say that an adapter is not loaded, and which are."""
        names = ", ".join(sorted(self._leases.available))
        loaded = f"loaded: {names}" if names else "none is loaded"
        return f"adapter {adapter!r} is not loaded; {loaded}"

    # ---- comings and goings

    def load(self, adapter: str, path: str, weights: Any = None) -> dict[str, Any]:
        """Load an adapter; sequences may take it from here on. Raises ConfigError.

        weights: what the runner has read of it; None: it is read now. Where all that are in memory
        have sequences it stays on the disk, like one that was used long ago.
        Returns what is worth telling: {"is_in_memory": False}, or what the runner says.
        """
        if adapter in self._leases:
            raise ConfigError(
                f"adapter {adapter!r} is loaded already, or still held by requests in flight; "
                "load the new weights under a new version"
            )
        if weights is None:
            weights = self._runner.read_adapter(path)
        if not self.has_room():
            self._leases.opened(adapter, path)
            self._leases.set_in_memory(adapter, is_in_memory=False)
            return {"is_in_memory": False}
        self._make_room()
        detail = self._runner.put_adapter(adapter, weights)
        self._leases.opened(adapter, path)
        return detail

    def unload(self, adapter: str) -> int:
        """Let no sequence take it any more, and forget it once those that hold it have ended.

        Returns how many still hold it. Raises ConfigError if it is unknown.
        """
        if not self.is_available(adapter):
            raise ConfigError(self.why_not(adapter))
        is_in_memory = self._leases.is_in_memory(adapter)
        is_free, num_sequences = self._leases.retire(adapter)
        if is_free and is_in_memory:
            self._runner.unload_adapter(adapter)
        return num_sequences

    def path_to_read(self, adapter: str) -> str | None:
        """Return the folder of an adapter that is to be read first; None: no need, or unknown."""
        return self._leases.path_to_read(adapter) if self.is_available(adapter) else None

    def take_in(self, adapter: str, path: str, weights: Any) -> None:
        """Bring to memory what was read from a path, if it is still wanted from there."""
        if self.path_to_read(adapter) != path:
            return
        if not self._leases.is_in_memory(adapter):
            self._make_room()
            self._runner.put_adapter(adapter, weights)
            self._leases.set_in_memory(adapter, is_in_memory=True)
        self._leases.let_stay()

    def room_for(self, adapter: str) -> Room:
        """Return what is to be known of the room that an adapter waits for."""

        def is_free() -> bool:
            is_gone = adapter not in self._leases
            return is_gone or self._leases.is_in_memory(adapter) or self.has_room()

        return Room(is_free, self._leases.tell_to_leave)

    def has_room(self) -> bool:
        """Whether one more can be in memory, in the place of one that nobody uses if need be."""
        is_full = self._runner.num_adapters >= self._runner.max_adapters
        return not is_full or self._leases.longest_unused() is not None

    def _make_room(self) -> None:
        """Give up the weights of the adapter that was used longest ago, if memory is full.

        Raises ConfigError if all that are in memory have sequences.
        """
        if self._runner.num_adapters < self._runner.max_adapters:
            return
        victim = self._leases.longest_unused()
        if victim is None:
            raise ConfigError(
                f"all {self._runner.max_adapters} adapters that max_adapters allows in memory are "
                "in use; try again in a moment, or raise engine.max_adapters"
            )
        self._runner.unload_adapter(victim, keeps_head=True)
        self._leases.set_in_memory(victim, is_in_memory=False)

    # ---- use

    def take(self, adapter: str | None) -> tuple[int, int]:
        """Count one more sequence; return the number of the load, and the adapter's row.

        None: the base model. The adapter has to be in memory.
        """
        if adapter is None:
            return 0, -1
        return self._leases.take(adapter), self._runner.adapter_row(adapter)

    def give_back(self, adapter: str | None) -> None:
        """Count one sequence less, and forget an adapter that was waiting for that."""
        if adapter is not None and self._leases.give_back(adapter):
            self._runner.unload_adapter(adapter)
