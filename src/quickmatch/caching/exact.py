"""The exact response cache: the same call, answered from the store.

Owns entries, their expiry and the bounds on size. Does not know HTTP, nor when a caller may be
given a cached answer: the gateway asks `get` or doesn't. Errors are never put in.

A small front in memory holds what was read or written in the last `front_s`; it makes a hit cost
no store access, and it is short-lived so that an entry deleted in the store (by a purge, or from
another process) is gone here too after that time.
Invariant: an entry past its time is never returned; a damaged one is a miss.
"""

import contextlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from quickmatch.core.clock import Clock, wall
from quickmatch.core.completion import Completion
from quickmatch.core.errors import ConfigError, NotFound, StoreError
from quickmatch.store.documents import CacheEntry
from quickmatch.store.protocol import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactCacheSettings:
    """Time and size bounds."""

    ttl_s: float = 300.0
    max_entries: int = 20_000
    max_bytes: int = 256 << 20
    max_entry_bytes: int = 1 << 20
    max_front_entries: int = 2048
    front_s: float = 2.0

    def __post_init__(self) -> None:
        for name in ("ttl_s", "max_entries", "max_bytes", "max_entry_bytes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"cache {name} is {getattr(self, name)}; it must be above 0")


@dataclass(slots=True)
class _Front:
    completion: Completion
    expires_at: float
    trusted_until: float


class ExactCache:
    """Safe from several threads; calls may block for a store access, except `get_front`."""

    def __init__(
        self, store: Store, settings: ExactCacheSettings | None = None, *, clock: Clock = wall
    ) -> None:
        self.settings = settings or ExactCacheSettings()
        self._store = store
        self._clock = clock
        self._front: OrderedDict[str, _Front] = OrderedDict()
        self._uses: dict[str, tuple[int, float]] = {}  # hits and last use, not written yet
        self._lock = threading.Lock()
        self._puts_to_trim = self._trim_every

    def get_front(self, key: str) -> Completion | None:
        """Return the answer if memory holds it; never blocks."""
        now = self._clock()
        with self._lock:
            held = self._front.get(key)
            if held is None or now >= held.expires_at or now >= held.trusted_until:
                return None
            self._front.move_to_end(key)
            self._note_use(key, now)
            return held.completion

    def get(self, key: str) -> Completion | None:
        """Return the answer from memory or the store, or None."""
        if (completion := self.get_front(key)) is not None:
            return completion
        now = self._clock()
        try:
            entry = self._store.get(CacheEntry, key)
            if entry is None or now >= entry.expires_at:
                self._drop(key)
                return None
            completion = msgspec.convert(entry.response, Completion)
        except (StoreError, ValueError, msgspec.ValidationError):  # damaged: as if not there
            self._drop(key)
            return None
        self._remember(key, completion, entry.expires_at, now)
        with self._lock:
            self._note_use(key, now)
        return completion

    def put(self, key: str, completion: Completion, *, tenant: str, version_id: str) -> None:
        """Keep an answer, unless it is too large."""
        entry = self.hold(key, completion, tenant=tenant, version_id=version_id)
        if entry is not None:
            self.write(entry)

    def hold(
        self, key: str, completion: Completion, *, tenant: str, version_id: str
    ) -> CacheEntry | None:
        """First half of `put`: keep in memory at once; return what `write` takes. Never blocks."""
        encoded = msgspec.json.encode(completion)
        if len(encoded) > self.settings.max_entry_bytes:
            return None
        now = self._clock()
        expires_at = now + self.settings.ttl_s
        self._remember(key, completion, expires_at, now)
        return CacheEntry(
            id=key,
            created_at=now,
            tenant=tenant,
            model_version=version_id,
            response=msgspec.json.decode(encoded),
            expires_at=expires_at,
            last_used_at=now,
            size_bytes=len(encoded),
        )

    def write(self, entry: CacheEntry) -> None:
        """Second half of `put`: write, and now and then drop the least recently used."""
        self._store.put(entry)
        with self._lock:
            self._puts_to_trim -= 1
            is_due = self._puts_to_trim <= 0
            if is_due:
                self._puts_to_trim = self._trim_every
        if is_due:
            self.trim()

    def trim(self) -> int:
        """Delete what is expired and what is beyond the bounds; return how many there were.

        Reads every entry once, but runs once in max_entries / 16 puts: a constant cost each.
        """
        self.write_uses()
        num_deleted = self._store.delete_many(CacheEntry, {"expires_at": {"$lte": self._clock()}})
        bytes_kept = 0
        surplus: list[str] = []
        newest = self._store.find(CacheEntry, order_by="last_used_at", descending=True)
        for num_kept, entry in enumerate(newest, start=1):
            bytes_kept += entry.size_bytes
            if num_kept > self.settings.max_entries or bytes_kept > self.settings.max_bytes:
                surplus.append(entry.id)
        for start in range(0, len(surplus), 500):
            ids = surplus[start : start + 500]
            num_deleted += self._store.delete_many(CacheEntry, {"id": {"$in": ids}})
            for key in ids:
                self._drop(key)
        return num_deleted

    def write_uses(self) -> None:
        """Write hits and last uses to the entries; eviction goes by them. Called now and then."""
        with self._lock:
            uses, self._uses = self._uses, {}
        for key, (num_hits, last_used_at) in uses.items():

            def change(entry: CacheEntry, n: int = num_hits, at: float = last_used_at) -> None:
                entry.num_hits += n
                entry.last_used_at = max(entry.last_used_at, at)

            with contextlib.suppress(NotFound, ValueError):  # deleted, or damaged
                self._store.update(CacheEntry, key, change)

    @property
    def _trim_every(self) -> int:
        return max(1, self.settings.max_entries // 16)

    def _note_use(self, key: str, now: float) -> None:
        num_hits, _ = self._uses.get(key, (0, now))
        self._uses[key] = (num_hits + 1, now)

    def _remember(self, key: str, completion: Completion, expires_at: float, now: float) -> None:
        with self._lock:
            trusted_until = now + self.settings.front_s
            self._front[key] = _Front(completion, expires_at, trusted_until)
            self._front.move_to_end(key)
            while len(self._front) > self.settings.max_front_entries:
                self._front.popitem(last=False)

    def _drop(self, key: str) -> None:
        with self._lock:
            self._front.pop(key, None)
