"""The closest rising line through noisy values. Plain Python, for some ten to fifty of them.

Source: pool adjacent violators (Ayer et al. 1955).
"""

from collections.abc import Sequence


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the non-decreasing values that lie closest, by weighted squares. Weights > 0."""
    means: list[float] = []
    masses: list[float] = []
    sizes: list[int] = []
    for value, weight in zip(values, weights, strict=True):
        size = 1
        while means and means[-1] > value:
            mass = masses.pop()
            value = (means.pop() * mass + value * weight) / (mass + weight)
            weight += mass
            size += sizes.pop()
        means.append(value)
        masses.append(weight)
        sizes.append(size)
    if len(means) == len(values):
        return means
    out: list[float] = []
    for value, size in zip(means, sizes, strict=True):
        out += [value] * size
    return out
