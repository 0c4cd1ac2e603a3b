"""Stage 0: token strings in which copying is the only way to predict.

No language yet. Tokens are drawn from the whole vocabulary; a loss is laid only where the answer
stands earlier in the row. Periods and gaps vary, so that no fixed distance does the work and the
model has to look for the same token, which is what an induction head does.
"""

from __future__ import annotations

import numpy as np

NUM_SPECIALS = 3


def repeats(rng: np.random.Generator, length: int, vocab_size: int) -> tuple[np.ndarray, ...]:
    """Strings of random tokens, each again one to three times, with noise in between."""
    tokens: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    total = 0
    while total < length:
        span = rng.integers(NUM_SPECIALS, vocab_size, rng.integers(3, 24))
        tokens.append(span)
        weights.append(np.zeros(len(span)))
        total += len(span)
        for _ in range(rng.integers(1, 4)):
            noise = rng.integers(NUM_SPECIALS, vocab_size, rng.integers(0, 6))
            known = np.ones(len(span))
            known[0] = 0.0  # nothing says that the copy begins here
            tokens += [noise, span]
            weights += [np.zeros(len(noise)), known]
            total += len(noise) + len(span)
    return np.concatenate(tokens)[:length], np.concatenate(weights)[:length]


def pairs(rng: np.random.Generator, length: int, vocab_size: int) -> tuple[np.ndarray, ...]:
    """A list of key -> value strings, then the keys again in another order with their values."""
    row: list[int] = []
    weights: list[float] = []
    while len(row) < length:
        entries = _entries(rng, vocab_size)
        colon, end = rng.integers(NUM_SPECIALS, vocab_size, 2).tolist()
        for key, value in entries:
            row += [*key, colon, *value, end]
            weights += [0.0] * (len(key) + len(value) + 2)
        for index in rng.integers(0, len(entries), rng.integers(2, 2 * len(entries) + 1)):
            key, value = entries[index]
            row += [*key, colon, *value, end]
            weights += [0.0] * len(key) + [0.2] + [1.0] * len(value) + [0.5]
    return np.array(row[:length]), np.array(weights[:length])


def _entries(rng: np.random.Generator, vocab_size: int) -> list[tuple[list[int], list[int]]]:
    """Key and value strings; half of the values share a small alphabet, as digits do."""
    alphabet = rng.integers(NUM_SPECIALS, vocab_size, 12)
    entries = []
    for _ in range(rng.integers(2, 9)):
        key = rng.integers(NUM_SPECIALS, vocab_size, rng.integers(1, 4)).tolist()
        size = rng.integers(1, 6)
        if rng.random() < 0.5:
            value = rng.choice(alphabet, size).tolist()
        else:
            value = rng.integers(NUM_SPECIALS, vocab_size, size).tolist()
        entries.append((key, value))
    return entries
