"""All whole numbers of a step in one tensor: one conversion and one copy to the device.

Turning a Python list into a tensor costs microseconds and, on a GPU, a transfer; a step has
some ten such lists. They are collected first, and turned into tensors together.
"""

from array import array

import torch
from torch import Tensor


class Packed:
    """A list handed to a packer; `tensor` is its view once the packer has run."""

    __slots__ = ("_end", "_is_last", "_start", "tensor")

    tensor: Tensor

    def __init__(self, start: int, end: int, *, is_last: bool = False) -> None:
        self._start = start
        self._end = end
        self._is_last = is_last

    def resolve(self, flat: Tensor, num_first: int) -> None:
        """Take the view of `flat` that holds this list. num_first: numbers before the last list."""
        moved = num_first if self._is_last else 0
        self.tensor = flat[moved + self._start : moved + self._end]


class IntPacker:
    """Collects lists of whole numbers; `run` turns them all into int64 tensors."""

    def __init__(self) -> None:
        self._values: list[int] = []
        self._last: list[int] = []
        self._parts: list[Packed] = []

    def add(self, values: list[int]) -> Packed:
        """Register a list; its tensor exists after `run`."""
        start = len(self._values)
        self._values.extend(values)
        part = Packed(start, len(self._values))
        self._parts.append(part)
        return part

    def add_last(self, values: list[int]) -> Packed:
        """Register the list that is to lie behind all others; those keep their place beside it."""
        part = Packed(0, len(values), is_last=True)
        self._last = values
        self._parts.append(part)
        return part

    @property
    def num_first(self) -> int:
        """Numbers of all lists but the last."""
        return len(self._values)

    def run(self, device: torch.device) -> None:
        """Make one tensor on the device and give every part its view."""
        flat = self._flat()
        if device.type != "cpu":
            flat = flat.pin_memory().to(device, non_blocking=True)
        self._resolve(flat)

    def run_into(self, host: Tensor, flat: Tensor) -> None:
        """The same in memory that is there already: by way of `host`, views of `flat`.

        Both int64, at least as long as all lists; host is pinned where flat is on a GPU.
        """
        packed = self._flat()
        num = len(packed)
        host[:num] = packed
        flat[:num].copy_(host[:num], non_blocking=True)
        self._resolve(flat)

    def _flat(self) -> Tensor:
        # By way of an array: torch takes a list's numbers one by one, at several times the cost.
        numbers = array("q", self._values + self._last)
        return torch.frombuffer(numbers, dtype=torch.int64) if numbers else torch.empty(0).long()

    def _resolve(self, flat: Tensor) -> None:
        for part in self._parts:
            part.resolve(flat, len(self._values))
