"""Whole numbers of a step in one tensor: every list finds its own, wherever it lies."""

import torch

from quickmatch.engine.packing import IntPacker

CPU = torch.device("cpu")


def test_every_list_has_its_view_and_the_last_lies_behind_all() -> None:
    packer = IntPacker()
    last = packer.add_last([7, 8, 9])
    first, empty, second = packer.add([1, -2]), packer.add([]), packer.add([1 << 62])
    packer.run(CPU)
    assert first.tensor.tolist() == [1, -2]
    assert empty.tensor.tolist() == []
    assert second.tensor.tolist() == [1 << 62]
    assert last.tensor.tolist() == [7, 8, 9]
    assert last.tensor.data_ptr() == second.tensor.data_ptr() + 8
    assert packer.num_first == 3


def test_lists_can_go_to_memory_that_is_there() -> None:
    host, flat = torch.zeros(10, dtype=torch.int64), torch.zeros(10, dtype=torch.int64)
    for numbers in ([1, 2], [3, 4]):
        packer = IntPacker()
        part, last = packer.add(numbers), packer.add_last(numbers * 2)
        packer.run_into(host, flat)
        assert part.tensor.data_ptr() == flat.data_ptr()
        assert flat.tolist() == [*numbers, *numbers, *numbers, 0, 0, 0, 0]
        assert last.tensor.tolist() == numbers * 2


def test_no_numbers_at_all_are_no_error() -> None:
    packer = IntPacker()
    part = packer.add([])
    packer.run(CPU)
    assert part.tensor.numel() == 0
