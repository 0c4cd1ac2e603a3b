"""Response caches: exact, in the gateway and as a decorator."""

from quickmatch.caching.decorator import cached
from quickmatch.caching.exact import ExactCache, ExactCacheSettings
from quickmatch.caching.key import cache_key, is_deterministic

__all__ = ["ExactCache", "ExactCacheSettings", "cache_key", "cached", "is_deterministic"]
