"""Merged generators: all items, the first error, and no source left open."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from quickmatch.fleet.merge import merge


class Source:
    """Yields numbers and notes that it was closed."""

    def __init__(self, count: int, error_at: int = -1) -> None:
        self.count, self.error_at, self.is_closed = count, error_at, False

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(self.count):
                await asyncio.sleep(0)
                if number == self.error_at:
                    raise ValueError("broken")
                yield number
        finally:
            self.is_closed = True


@pytest.mark.parametrize("num_sources", [1, 3])
async def test_every_item_comes_in_its_sources_order(num_sources: int) -> None:
    sources = [Source(4 + i) for i in range(num_sources)]
    found: dict[int, list[int]] = {}
    async for number, item in merge([s.items() for s in sources]):
        found.setdefault(number, []).append(item)
    assert found == {i: list(range(4 + i)) for i in range(num_sources)}
    assert all(s.is_closed for s in sources)


@pytest.mark.parametrize("num_sources", [1, 3])
async def test_leaving_early_closes_all(num_sources: int) -> None:
    sources = [Source(100) for _ in range(num_sources)]
    async with aclosing(merge([s.items() for s in sources])) as merged:
        async for _ in merged:
            break
    assert all(s.is_closed for s in sources)


async def test_the_first_error_ends_all() -> None:
    sources = [Source(100), Source(100, error_at=2), Source(100)]
    with pytest.raises(ValueError, match="broken"):
        async for _ in merge([s.items() for s in sources]):
            pass
    assert all(s.is_closed for s in sources)
