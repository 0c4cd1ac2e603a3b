"""The exact cache: time, size, damage, and coherence with what others do in the store."""

import pytest

from quickmatch.caching.exact import ExactCache, ExactCacheSettings
from quickmatch.core.completion import Choice, Completion, FinishReason, TokenLogprob, Usage
from quickmatch.core.errors import ConfigError
from quickmatch.store.documents import CacheEntry
from quickmatch.store.protocol import Store
from tests.unit.caching.conftest import FakeClock

ANSWER = Completion(
    (
        Choice(
            0,
            "text",
            FinishReason.LENGTH,
            (1, 2),
            (TokenLogprob(1, "te", -0.1, ((1, "te", -0.1), (2, "xt", -2.0))),),
        ),
    ),
    Usage(5, 2, 1),
)


def make(store: Store, clock: FakeClock, **settings: float) -> ExactCache:
    return ExactCache(store, ExactCacheSettings(**settings), clock=clock)  # type: ignore[arg-type]


def put(cache: ExactCache, key: str, answer: Completion = ANSWER) -> None:
    cache.put(key, answer, tenant="default", version_id="tiny@1")


def test_an_answer_comes_back_whole_from_memory_and_from_the_store(
    store: Store, clock: FakeClock
) -> None:
    put(make(store, clock), "k")
    other = make(store, clock)  # another process, or this one after a restart
    assert other.get_front("k") is None
    assert other.get("k") == ANSWER
    assert other.get_front("k") == ANSWER
    assert other.get("unknown") is None


def test_entries_expire(store: Store, clock: FakeClock) -> None:
    cache = make(store, clock, ttl_s=10, front_s=100)
    put(cache, "k")
    clock.now += 9.9
    assert cache.get("k") == ANSWER
    clock.now += 0.1
    assert cache.get("k") is None
    assert make(store, clock).get("k") is None
    assert cache.trim() == 1
    assert store.count(CacheEntry) == 0


def test_a_purge_in_the_store_reaches_the_memory(store: Store, clock: FakeClock) -> None:
    cache = make(store, clock, front_s=2)
    put(cache, "k")
    store.delete(CacheEntry, "k")
    clock.now += 2
    assert cache.get("k") is None


def test_a_damaged_entry_is_a_miss(store: Store, clock: FakeClock) -> None:
    put(make(store, clock), "k")

    def damage(entry: CacheEntry) -> None:
        entry.response = {"choices": "nonsense"}

    store.update(CacheEntry, "k", damage)
    assert make(store, clock).get("k") is None


def test_the_least_recently_used_go_first(store: Store, clock: FakeClock) -> None:
    cache = make(store, clock, max_entries=3)
    for number in range(3):
        clock.now += 1
        put(cache, f"k{number}")
    clock.now += 1
    assert cache.get("k0") == ANSWER
    clock.now += 1
    put(cache, "k3")
    assert {entry.id for entry in store.find(CacheEntry)} == {"k0", "k2", "k3"}
    assert cache.get("k1") is None


def test_bytes_are_bounded(store: Store, clock: FakeClock) -> None:
    cache = make(store, clock, max_bytes=1, max_entries=16)
    put(cache, "k")
    assert store.count(CacheEntry) == 0
    small = make(store, clock, max_entry_bytes=10)
    put(small, "k")
    assert small.get("k") is None


def test_hits_are_written_now_and_then(store: Store, clock: FakeClock) -> None:
    cache = make(store, clock)
    put(cache, "k")
    clock.now += 1
    assert cache.get("k") == cache.get("k") == ANSWER
    cache.write_uses()
    cache.write_uses()
    entry = store.get(CacheEntry, "k")
    assert entry is not None
    assert (entry.num_hits, entry.last_used_at) == (2, clock.now)
    cache.get("k")
    store.delete(CacheEntry, "k")
    cache.write_uses()  # deleted in between: nothing to write to


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="ttl_s is 0"):
        ExactCacheSettings(ttl_s=0)
