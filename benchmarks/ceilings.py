"""What the machine can do at most, measured now: the scale beside every figure.

Decoding one sequence reads each weight once a token, so the copy bandwidth bounds it: tokens/s
≤ bandwidth ÷ bytes of weights. Weights that fit the last-level cache may beat this, as the
copy measured here does not fit. Prefill and big batches multiply more than they read, so the
matmul rate bounds them: tokens/s ≤ FLOP/s ÷ (2 × weights).

Each is the best of several tries, because a ceiling is what is possible, not what is usual. A
benchmark measures them before and after its turns, and keeps the better.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

_COPY_BYTES = 256 << 20  # beyond every cache
_MATRIX = 1024
_TRIES = 7


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates of this machine with all the cores that torch uses."""

    copy_gb_per_s: float  # bytes read plus bytes written
    matmul_bf16_gflop_per_s: float
    matmul_f32_gflop_per_s: float
    num_threads: int

    def or_better(self, other: "Ceilings") -> "Ceilings":
        """Return the higher rate of each kind: of two measurements the less disturbed one."""
        rates = {name: max(value, getattr(other, name)) for name, value in asdict(self).items()}
        return Ceilings(**rates)

    def as_json(self) -> dict[str, float]:
        """Return the fields, rounded."""
        return {name: round(value, 1) for name, value in asdict(self).items()}


def measure_ceilings() -> Ceilings:
    """Take about a second."""
    return Ceilings(
        copy_gb_per_s=_copy_bandwidth(),
        matmul_bf16_gflop_per_s=_matmul_rate(torch.bfloat16),
        matmul_f32_gflop_per_s=_matmul_rate(torch.float32),
        num_threads=torch.get_num_threads(),
    )


def _copy_bandwidth() -> float:
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _best_s(lambda: target.copy_(source)) / 1e9


def _matmul_rate(dtype: torch.dtype) -> float:
    left = torch.randn(_MATRIX, _MATRIX).to(dtype)
    right = torch.randn(_MATRIX, _MATRIX).to(dtype)
    return 2 * _MATRIX**3 / _best_s(lambda: left @ right) / 1e9


def _best_s(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
