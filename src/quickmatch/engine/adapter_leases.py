"""Which loaded adapters are in use, which are in memory, and which wait to be forgotten.

Owns: one entry a loaded adapter version, with the number of live sequences that came with it and
whether its weights are in memory or only on disk. It does not load anything. An adapter that is to
be unloaded takes no new sequence, and goes when the last one that holds it has ended; so a request
in flight keeps the version it came with. Of those that nobody uses, the one that was used longest
ago makes room for another. Where none is unused, one can be told to leave: it takes no new sequence
either, until it has left the memory or is let stay.

Invariant: every load has a number of its own, even of the same id again, so that KV computed with
an earlier load of an id is never taken for a later one's.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class _Lease:
    version: int  # from 1; 0 stands for the base model in prefix digests
    path: str  # the folder of its weights
    last_use: int  # counts up with every use of any
    num_sequences: int = 0
    is_in_memory: bool = True
    is_retiring: bool = False
    is_leaving: bool = False  # the memory, not the list of adapters


class AdapterLeases:
    """Counts the live sequences of each loaded adapter."""

    def __init__(self) -> None:
        self._leases: dict[str, _Lease] = {}
        self._num_loads = 0
        self._num_uses = 0

    @property
    def available(self) -> list[str]:
        """Adapters that new sequences may use."""
        return [name for name, lease in self._leases.items() if not lease.is_retiring]

    def opened(self, adapter: str, path: str) -> None:
        """Record that an adapter was loaded."""
        self._num_loads += 1
        self._leases[adapter] = _Lease(version=self._num_loads, path=path, last_use=self._use())

    def _use(self) -> int:
        self._num_uses += 1
        return self._num_uses

    # ---- memory

    def is_in_memory(self, adapter: str) -> bool:
        """Whether an adapter's weights are in memory, be it only until it has left."""
        return self._leases[adapter].is_in_memory

    def path_to_read(self, adapter: str) -> str | None:
        """Return the folder to read an adapter from before it takes a sequence; None: no need."""
        lease = self._leases[adapter]
        return lease.path if lease.is_leaving or not lease.is_in_memory else None

    def set_in_memory(self, adapter: str, *, is_in_memory: bool) -> None:
        """Record that an adapter's weights were read again, or given up."""
        self._leases[adapter].is_in_memory = is_in_memory
        self._leases[adapter].is_leaving = False

    def tell_to_leave(self) -> None:
        """Let one of those in memory take no new sequence: that with the fewest of them."""
        staying = [
            (lease.num_sequences, lease.last_use, name)
            for name, lease in self._leases.items()
            if lease.is_in_memory and not lease.is_leaving and not lease.is_retiring
        ]
        if staying:
            self._leases[min(staying)[2]].is_leaving = True

    def let_stay(self) -> None:
        """Let those that were to leave take sequences again."""
        for lease in self._leases.values():
            lease.is_leaving = False

    def longest_unused(self) -> str | None:
        """Return which adapter in memory, of those without a sequence, was used longest ago."""
        idle = [
            (lease.last_use, name)
            for name, lease in self._leases.items()
            if lease.is_in_memory and not lease.num_sequences
        ]
        return min(idle)[1] if idle else None

    # ---- use

    def __contains__(self, adapter: object) -> bool:
        """Whether it is loaded, be it only for the sequences that still hold it."""
        return adapter in self._leases

    def is_available(self, adapter: str) -> bool:
        """Whether new sequences may use it."""
        lease = self._leases.get(adapter)
        return lease is not None and not lease.is_retiring

    def take(self, adapter: str) -> int:
        """Count one more sequence; return the load's number. KeyError if it is not loaded."""
        lease = self._leases[adapter]
        lease.num_sequences += 1
        lease.last_use = self._use()
        return lease.version

    def give_back(self, adapter: str) -> bool:
        """Count one sequence less; return whether the adapter is to be unloaded now."""
        lease = self._leases[adapter]
        lease.num_sequences -= 1
        return self._close_if_idle(adapter, lease)

    def retire(self, adapter: str) -> tuple[bool, int]:
        """Take no more sequences; return whether to unload now, and how many still hold it."""
        lease = self._leases[adapter]
        lease.is_retiring = True
        return self._close_if_idle(adapter, lease), lease.num_sequences

    def _close_if_idle(self, adapter: str, lease: _Lease) -> bool:
        if lease.is_retiring and lease.num_sequences == 0:
            del self._leases[adapter]
            return True
        return False
