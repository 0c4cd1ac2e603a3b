"""The card: whether there is one that will do, what it is, and what it can do at most.

The ceilings are those of benchmarks/ceilings.py, on the card: the copy bandwidth bounds decoding at
batch 1, the matmul rate bounds prefill. Each is the best of several tries.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from quickmatch.engine.gpu.support import why_not_fp8, why_not_triton

_COPY_BYTES = 2 << 30  # beyond every cache
_MATRIX = 8192
_TRIES = 10


def why_not(num_gib: float) -> str | None:
    """Return why nothing can be measured here, and what is needed; None if all is well."""
    needed = f"it needs a GPU with {num_gib:g} GiB free, as an H100 or H200 has"
    if not torch.cuda.is_available():
        return f"there is no CUDA device, or this torch was built without CUDA; {needed}"
    device = torch.device("cuda")
    reason = why_not_triton(device)
    if reason is not None:
        return f"{reason}; {needed}"
    free = torch.cuda.mem_get_info(device)[0] / 2**30
    return None if free >= num_gib else f"{free:.0f} GiB of the GPU are free; {needed}"


def precisions_of(wanted: tuple[str, ...], device: torch.device) -> dict[str, str]:
    """Return of each precision why it cannot be measured; "" where it can."""
    return {one: (why_not_fp8(device) or "") if one == "fp8" else "" for one in wanted}


def facts(device: torch.device) -> dict[str, Any]:
    """Return what a result says of the card."""
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "processors": found.multi_processor_count,
        "capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
    }


def measure_ceilings(
    device: torch.device, *, copy_bytes: int = _COPY_BYTES, matrix: int = _MATRIX
) -> dict[str, float]:
    """Return rates of the device. copy_gb_per_s: bytes read plus bytes written."""
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = best_s(lambda: target.copy_(source), device)
    left = torch.randn(matrix, matrix, device=device).to(torch.bfloat16)
    right = torch.randn(matrix, matrix, device=device).to(torch.bfloat16)
    product_s = best_s(lambda: left @ right, device)
    return {
        "copy_gb_per_s": 2 * copy_bytes / copy_s / 1e9,
        "matmul_bf16_tflop_per_s": 2 * matrix**3 / product_s / 1e12,
    }


def best_s(work: Callable[[], object], device: torch.device, tries: int = _TRIES) -> float:
    """Return the seconds of the best of several runs, after one that does not count."""
    work()
    return min(seconds(work, device) for _ in range(tries))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one run, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
