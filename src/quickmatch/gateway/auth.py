"""Who is calling. For now everyone is the default tenant: any bearer token, or none, is taken.

The seam where API keys, scopes and tenants come in: `identify` will look the token up and raise.
Nothing else in the gateway reads the Authorization header.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose call it is. Caches and traces are kept apart by tenant."""

    tenant: str = "default"


def identify(headers: Mapping[str, str]) -> Caller:  # noqa: ARG001 - keys are looked up here later
    """Return the caller that the headers prove."""
    return Caller()
