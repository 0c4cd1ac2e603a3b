"""Sums that round as a plain loop does: what the native twins compute, to the last bit.

The built-in `sum` rounds otherwise from Python 3.12 on.
"""

from collections.abc import Iterable
from functools import reduce
from operator import add


def in_order(values: Iterable[float]) -> float:
    """Return the sum, added up from the first to the last."""
    return reduce(add, values, 0.0)
