"""All whole numbers of a step in one tensor: one conversion and one copy to the device.

Turning a Python list into a tensor costs microseconds and, on a GPU, a transfer; a step has
some ten such lists. They are collected first, and turned into tensors together.
"""

import torch
from torch import Tensor


class Packed:
    """A list handed to a packer; `tensor` is its view once the packer has run."""

    __slots__ = ("_end", "_start", "tensor")

    tensor: Tensor

    def __init__(self, start: int, end: int) -> None:
        self._start = start
        self._end = end

    def resolve(self, flat: Tensor) -> None:
        """Take the view of `flat` that holds this list."""
        self.tensor = flat[self._start : self._end]


class IntPacker:
    """Collects lists of whole numbers; `run` turns them all into int64 tensors."""

    def __init__(self) -> None:
        self._values: list[int] = []
        self._parts: list[Packed] = []

    def add(self, values: list[int]) -> Packed:
        """Register a list; its tensor exists after `run`."""
        start = len(self._values)
        self._values.extend(values)
        part = Packed(start, len(self._values))
        self._parts.append(part)
        return part

    def run(self, device: torch.device) -> None:
        """Make one tensor on the device and give every part its view."""
        flat = torch.tensor(self._values, dtype=torch.int64)
        if device.type != "cpu":
            flat = flat.pin_memory().to(device, non_blocking=True)
        for part in self._parts:
            part.resolve(flat)
