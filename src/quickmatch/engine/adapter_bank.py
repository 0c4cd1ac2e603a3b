"""The adapters loaded over one base, by version id, and the row number of each.

An adapter has a row number from load to unload; the scheduler writes it into each span. A row
that is free is given to the next adapter, so the engine unloads only what no running sequence
uses.
"""

from quickmatch.core.errors import Conflict


class AdapterBank:
    """Version ids and rows; what an adapter adds to a step is the decoder's (forward_pass.py)."""

    def __init__(self, max_adapters: int) -> None:
        self.max_adapters = max_adapters
        self._row_of: dict[str, int] = {}

    @property
    def ids(self) -> list[str]:
        """Version ids, in order of loading."""
        return list(self._row_of)

    def row(self, adapter_id: str) -> int:
        """Return the row number that spans carry. Raises KeyError if it is not loaded."""
        return self._row_of[adapter_id]

    def find(self, adapter_id: str) -> int | None:
        """Return the row number, None if it is not loaded."""
        return self._row_of.get(adapter_id)

    def check_room(self, adapter_id: str) -> None:
        """Raise Conflict if the id is taken or no row is free."""
        if adapter_id in self._row_of:
            raise Conflict(f"adapter {adapter_id} is already loaded; unload it first")
        if len(self._row_of) >= self.max_adapters:
            raise Conflict(
                f"{len(self._row_of)} adapters are loaded, as many as max_adapters allows; "
                "unload one or raise max_adapters"
            )

    def add(self, adapter_id: str) -> int:
        """Give an adapter a row and return its number."""
        self.check_room(adapter_id)
        taken = set(self._row_of.values())
        row = next(r for r in range(self.max_adapters) if r not in taken)
        self._row_of[adapter_id] = row
        return row

    def remove(self, adapter_id: str) -> int:
        """Free an adapter's row and return its number. Raises KeyError if it is not loaded."""
        return self._row_of.pop(adapter_id)
