"""The exact cache as a decorator, for any function that calls a model.

    @cached(ttl_s=300)
    def explain(rating: str) -> str: ...

    explain("good")                     # calls the model
    explain("good")                     # does not
    explain("good", cache_bypass=True)  # calls it, and leaves the cache alone

Owns the key (function's name and arguments as JSON) and the single flight: callers who come while
the same call is running wait for its answer. Errors are not kept; each waiting caller gets the
error of the call that it waited for. Works on sync functions (any number of threads) and async
ones. With a store, answers outlive the process and must be JSON; without, they stay in memory.
"""

import asyncio
import functools
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import msgspec

from quickmatch.caching.key import function_key
from quickmatch.core.clock import Clock, wall
from quickmatch.core.errors import StoreError
from quickmatch.store.documents import CacheEntry
from quickmatch.store.protocol import Store

P = ParamSpec("P")
R = TypeVar("R")

TENANT = "function"  # of entries that a decorated function makes


@dataclass(frozen=True, slots=True)
class Found:
    """A kept answer; wrapped, so that None can be one."""

    value: Any


class Shelf(Protocol):
    """Where a decorated function's answers are kept."""

    def get(self, key: str) -> Found | None:
        """Return what is kept, if its time is not over."""

    def put(self, key: str, value: Any) -> None:
        """Keep an answer."""


def cached(
    *,
    ttl_s: float = 300.0,
    store: Store | None = None,
    max_entries: int = 1024,
    ignore: tuple[str, ...] = (),
    clock: Clock = wall,
) -> Callable[[Callable[P, R]], Callable[..., R]]:
    """Return the decorator.

    ignore: names of arguments that do not change the answer (a client, a timeout).
    max_entries: bound of the memory; a store has the bounds of its own exact cache.
    """

    def decorate(function: Callable[P, R]) -> Callable[..., R]:
        name = f"{function.__module__}.{function.__qualname__}"
        shelf: Shelf = (
            StoreShelf(store, name, ttl_s, clock)
            if store is not None
            else MemoryShelf(max_entries, ttl_s, clock)
        )
        signature = inspect.signature(function)

        def key_of(*args: Any, **kwargs: Any) -> str:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            used = {k: v for k, v in bound.arguments.items() if k not in ignore}
            return function_key(name, used)

        if inspect.iscoroutinefunction(function):
            return cast("Callable[..., R]", _async_wrapper(function, shelf, key_of))
        return _sync_wrapper(function, shelf, key_of)

    return decorate


def _sync_wrapper(
    function: Callable[P, R], shelf: Shelf, key_of: Callable[..., str]
) -> Callable[..., R]:
    flights: dict[str, Future[R]] = {}
    lock = threading.Lock()

    @functools.wraps(function)
    def wrapper(*args: Any, cache_bypass: bool = False, **kwargs: Any) -> R:
        if cache_bypass:
            return function(*args, **kwargs)
        key = key_of(*args, **kwargs)
        if (found := shelf.get(key)) is not None:
            return cast("R", found.value)
        with lock:
            flight = flights.get(key)
            is_first = flight is None
            if flight is None:
                flight = flights[key] = Future()
        if not is_first:
            return flight.result()
        try:
            answer = function(*args, **kwargs)
            shelf.put(key, answer)
            flight.set_result(answer)
        except BaseException as error:
            flight.set_exception(error)
            raise
        finally:
            with lock:
                del flights[key]
        return answer

    return wrapper


def _async_wrapper(
    function: Callable[..., Any], shelf: Shelf, key_of: Callable[..., str]
) -> Callable[..., Any]:
    flights: dict[tuple[int, str], asyncio.Task[Any]] = {}  # by event loop: tasks belong to one

    async def fly(key: str, args: Any, kwargs: Any) -> Any:
        found = await asyncio.to_thread(shelf.get, key)
        if found is not None:
            return found.value
        answer = await function(*args, **kwargs)
        await asyncio.to_thread(shelf.put, key, answer)
        return answer

    @functools.wraps(function)
    async def wrapper(*args: Any, cache_bypass: bool = False, **kwargs: Any) -> Any:
        if cache_bypass:
            return await function(*args, **kwargs)
        key = key_of(*args, **kwargs)
        flight_key = (id(asyncio.get_running_loop()), key)
        flight = flights.get(flight_key)
        if flight is None:
            flight = flights[flight_key] = asyncio.create_task(fly(key, args, kwargs))
            flight.add_done_callback(lambda _: flights.pop(flight_key, None))
        # Shielded: a caller who gives up does not take the answer from the others.
        return await asyncio.shield(flight)

    return wrapper


class MemoryShelf:
    """Answers of this process, least recently used out first."""

    def __init__(self, max_entries: int, ttl_s: float, clock: Clock) -> None:
        self._max_entries = max_entries
        self._ttl_s = ttl_s
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Found | None:
        """Return what is kept, if its time is not over."""
        with self._lock:
            expires_at, value = self._kept.get(key, (0.0, None))
            if self._clock() >= expires_at:
                self._kept.pop(key, None)
                return None
            self._kept.move_to_end(key)
            return Found(value)

    def put(self, key: str, value: Any) -> None:
        """Keep an answer."""
        with self._lock:
            self._kept[key] = (self._clock() + self._ttl_s, value)
            self._kept.move_to_end(key)
            while len(self._kept) > self._max_entries:
                self._kept.popitem(last=False)


class StoreShelf:
    """Answers as cache entries in the store."""

    def __init__(self, store: Store, name: str, ttl_s: float, clock: Clock) -> None:
        self._store = store
        self._name = name
        self._ttl_s = ttl_s
        self._clock = clock

    def get(self, key: str) -> Found | None:
        """Return what is kept; a damaged entry is as if not there."""
        try:
            entry = self._store.get(CacheEntry, key)
        except (StoreError, ValueError):
            return None
        if entry is None or self._clock() >= entry.expires_at or "value" not in entry.response:
            return None
        return Found(entry.response["value"])

    def put(self, key: str, value: Any) -> None:
        """Keep an answer. Raises TypeError if JSON cannot say it."""
        encoded = msgspec.json.encode({"value": value})
        response = msgspec.json.decode(encoded)
        if response["value"] != value:
            raise TypeError(
                f"{self._name} returned {type(value).__name__}, which JSON does not keep as it "
                "is; return str, numbers, lists and dicts, or cache in memory (no store=)"
            )
        now = self._clock()
        entry = CacheEntry(
            id=key,
            created_at=now,
            tenant=TENANT,
            model_version=self._name,
            response=response,
            expires_at=now + self._ttl_s,
            last_used_at=now,
            size_bytes=len(encoded),
        )
        self._store.put(entry)
