"""The decorator: one call for many callers, kept for a time, errors never."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from quickmatch.caching import cached
from quickmatch.store.protocol import Store
from tests.unit.caching.conftest import FakeClock


@pytest.mark.parametrize("in_store", [False, True])
def test_sync_function_is_called_once_until_its_time_is_over(
    store: Store, clock: FakeClock, in_store: bool
) -> None:
    calls: list[tuple[str, int]] = []

    @cached(ttl_s=10, store=store if in_store else None, clock=clock)
    def explain(rating: str, length: int = 3) -> dict[str, object]:
        calls.append((rating, length))
        return {"rating": rating, "words": [1] * length}

    assert explain("good") == explain("good", 3) == explain(length=3, rating="good")
    assert len(calls) == 1
    assert explain("poor") != explain("good")
    assert explain("good", cache_bypass=True) == explain("good")
    assert calls == [("good", 3), ("poor", 3), ("good", 3)]
    clock.now += 10
    explain("good")
    assert len(calls) == 4


def test_threads_share_one_call() -> None:
    started = threading.Barrier(8)
    calls: list[int] = []

    @cached()
    def slow(number: int) -> int:
        calls.append(number)
        time.sleep(0.05)
        return number * 2

    def ask(_: int) -> int:
        started.wait()
        return slow(4)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {8}
    assert calls == [4]


async def test_tasks_share_one_call_also_if_the_first_gives_up() -> None:
    calls: list[str] = []

    @cached()
    async def slow(text: str) -> str:
        calls.append(text)
        await asyncio.sleep(0.02)
        return text.upper()

    asking = [asyncio.create_task(slow("a")) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()
    assert await asyncio.gather(*asking[1:]) == ["A"] * 4
    assert await slow("a") == "A"
    assert calls == ["a"]
    assert await slow("a", cache_bypass=True) == "A"
    assert calls == ["a", "a"]


async def test_errors_are_not_kept() -> None:
    calls: list[int] = []

    @cached()
    async def fails() -> None:
        calls.append(1)
        raise ValueError("no")

    @cached()
    def fails_too() -> None:
        calls.append(1)
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await fails()
        with pytest.raises(ValueError, match="no"):
            fails_too()
    assert len(calls) == 4


def test_ignored_arguments_and_none_as_an_answer() -> None:
    calls: list[object] = []

    @cached(ignore=("client",))
    def ask(client: object, text: str) -> None:
        calls.append((client, text))

    assert ask(object(), "a") is None
    assert ask(object(), "a") is None
    assert len(calls) == 1


def test_memory_is_bounded() -> None:
    calls: list[int] = []

    @cached(max_entries=2)
    def ask(number: int) -> int:
        calls.append(number)
        return number

    for number in (1, 2, 3, 1):
        ask(number)
    assert calls == [1, 2, 3, 1]


def test_what_json_cannot_say_is_refused(store: Store) -> None:
    @cached(store=store)
    def pair() -> tuple[int, int]:
        return 1, 2

    with pytest.raises(TypeError, match="tuple"):
        pair()
