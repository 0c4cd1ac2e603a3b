"""Identifiers: sortable by time of creation, with a prefix that says of what."""

import os
import re
import time

from quickmatch.core.errors import ConfigError

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def new_id(prefix: str) -> str:
    """Return `prefix-` and 22 characters: 48 bits of milliseconds, then 62 random bits."""
    value = (time.time_ns() // 1_000_000) << 62 | int.from_bytes(os.urandom(8)) >> 2
    digits = [_ALPHABET[value >> shift & 31] for shift in range(105, -1, -5)]
    return f"{prefix}-{''.join(digits)}"


def check_name(name: str, noun: str) -> str:
    """Return `name` if it can name a thing. Raises ConfigError with what is allowed."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{noun} name {name!r} is not allowed; use 1 to 63 letters, digits, '.', '_' or '-', "
            "the first a letter or digit"
        )
    return name
