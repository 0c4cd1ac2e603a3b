"""What a model runs on: the device, and how many threads of it.

Owns what EngineConfig leaves on "auto" there. Nothing is decided again while the engine runs.
"""

import logging
import os
from pathlib import Path

import torch

from quickmatch.core.errors import ConfigError
from quickmatch.engine.folder import weight_files

logger = logging.getLogger(__name__)

_SMALL_MODEL_BYTES = 64 << 20


def choose_device(name: str) -> torch.device:
    """Resolve "auto" (cuda where there is one, else cpu), or check the named device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}; use auto, cpu or cuda") from None
    if device.index:
        raise ConfigError(
            f"device is {name}; use {device.type}, and choose the card by the environment: "
            f"CUDA_VISIBLE_DEVICES={device.index}"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name} but this machine has no CUDA device; use cpu")
    return device


def auto_num_threads(folder: Path) -> int:
    """Return how many threads a model's step is worth: one for a small model, else all cores.

    A small model's operations take microseconds, less than waking a second thread for each; the
    core is better left to the gateway's process. The native pass has threads of its own, and
    decides step by step.
    """
    num_bytes = sum(path.stat().st_size for path in weight_files(folder))
    num_threads = 1 if num_bytes < _SMALL_MODEL_BYTES else num_usable_cores()
    logger.info("threads: %d, for %.1f MB of weights", num_threads, num_bytes / 1e6)
    return num_threads


def num_usable_cores() -> int:
    """Return the cores that this process may use; fewer than the machine's under an affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
