"""The buckets of calibration: of raw confidence, of the feature, of the depth. Constants only.

The twin of src/native/speculation/calibration_grid.hpp.
"""

from collections.abc import Sequence
from itertools import pairwise

GRID = 64  # raw confidences are looked up in steps of 1 / GRID
CONFIDENCES = (0.0, 0.05, 0.12, 0.22, 0.35, 0.5, 0.65, 0.78, 0.88, 0.94, 0.98, 1.0)  # centres
MAX_FEATURE = 64
MAX_DEPTH = 1024
_FEATURES = (2, 4, 8, 16, 32, MAX_FEATURE)  # upper ends
_DEPTHS = (1, 3, 7, MAX_DEPTH)
NUM_C, NUM_F, NUM_D = len(CONFIDENCES), len(_FEATURES), len(_DEPTHS)


def _bucket(ends: Sequence[int], value: int) -> int:
    return next(i for i, end in enumerate(ends) if value <= end)


def _confidence_bucket(grid: int) -> int:
    middles = [(a + b) / 2 for a, b in pairwise(CONFIDENCES)]
    return sum(grid / GRID > middle for middle in middles)


C_OF = tuple(_confidence_bucket(i) for i in range(GRID + 1))
F_OF = tuple(_bucket(_FEATURES, i) for i in range(MAX_FEATURE + 1))
D_OF = tuple(_bucket(_DEPTHS, i) for i in range(MAX_DEPTH + 1))


def _neighbours() -> tuple[tuple[int, int, float], ...]:
    out = []
    for grid in range(GRID + 1):
        confidence = grid / GRID
        high = next(i for i, centre in enumerate(CONFIDENCES) if confidence <= centre)
        low = max(high - 1, 0)
        width = CONFIDENCES[high] - CONFIDENCES[low]
        out.append((low, high, (confidence - CONFIDENCES[low]) / width if width else 1.0))
    return tuple(out)


_NEIGHBOURS = _neighbours()  # of each confidence of the grid: two centres, the upper one's share


def on_grid(values: Sequence[float]) -> list[float]:
    """Return the values, given at the centres, at all confidences of the grid."""
    return [values[low] * (1.0 - share) + values[high] * share for low, high, share in _NEIGHBOURS]


def by_depth(tables: Sequence[list[float]]) -> list[list[float]]:
    """Return the depth bucket's table for each depth from 0 to MAX_DEPTH."""
    out: list[list[float]] = [tables[0]]
    for table, end in zip(tables, _DEPTHS, strict=True):
        out += [table] * (end + 1 - len(out))
    return out
