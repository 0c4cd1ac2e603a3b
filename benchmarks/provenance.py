"""Where a figure comes from: commit, hardware, versions, date. Written into every result.

A figure without these cannot be compared with another one, or be made again.
"""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
_PACKAGES = ("quickmatch", "torch", "triton", "transformers", "tokenizers", "numpy")
_CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def provenance() -> dict[str, Any]:
    """Return what a result file says of the run's surroundings."""
    return {
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
    }


def commit() -> str:
    """Return the commit's hash, with "+changes" where the tree differs from it."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    changes = _git("status", "--porcelain", "--", ":!benchmarks/results")
    return f"{head}+changes" if changes else head


def hardware() -> dict[str, Any]:
    """Return the CPU, its cores as this process may use them, memory, and the load on it now."""
    cpuinfo = _read("/proc/cpuinfo")
    model, flags = _cpuinfo_field(cpuinfo, "model name"), _cpuinfo_field(cpuinfo, "flags")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": _num_cores(),
        "features": [name for name in _CPU_FEATURES if name in flags.split()],
        "memory_gib": round(pages / 2**30, 1),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Return Python's version and those of the packages that decide speed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo_field(cpuinfo: str, name: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
