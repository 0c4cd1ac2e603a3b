"""Whose calls are told apart from whose: the names that drifts and past outputs are kept under."""

from collections.abc import Mapping
from hashlib import blake2b


def traffic_of(tenant: str, adapter: str | None) -> str:
    """Return what drifts are told apart by: whose calls they are, and which weights answer them."""
    return f"{tenant}\0{adapter or ''}"


def by_adapter(drifts: Mapping[str, int]) -> dict[str, int]:
    """Add up what was told apart by traffic, by the weights alone."""
    total: dict[str, int] = {}
    for traffic, number in drifts.items():
        adapter = traffic.rpartition("\0")[2]
        total[adapter] = total.get(adapter, 0) + number
    return total


def scope_of(tenant: str, adapter: str | None, isolation_key: str) -> str:
    """Return what past outputs are kept apart by: the traffic, and the key that callers sent.

    The key's digest stands for it: scopes are kept for long, and a key may be of any length.
    """
    key = isolation_key.encode("utf-8", "surrogatepass")
    return f"{traffic_of(tenant, adapter)}\0{blake2b(key, digest_size=16).hexdigest()}"
