"""Checkpoints: all that a run needs to go on exactly where it was.

Owns the file `checkpoint.pt` of a job. It is serialised in memory, written beside, flushed to
disk and renamed over the old one, so that a killed process or a full disk leaves the last whole
checkpoint. (Adapters are small; a checkpoint of rank 8 on a 7M-parameter model is 3 MB.)
"""

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quickmatch.core.errors import ConfigError

FILE_NAME = "checkpoint.pt"
_FORMAT = 1


@dataclass(slots=True)
class Checkpoint:
    """State after `step` steps."""

    step: int
    run_key: str  # of settings, dataset and base: a checkpoint fits one run
    parameters: dict[str, Tensor]  # the trainable ones
    optimizer: dict[str, Any]
    rng: Tensor  # torch's CPU generator, for dropout
    best_parameters: dict[str, Tensor] = field(default_factory=dict)
    best_eval_loss: float | None = None
    num_bad_evals: int = 0
    first_eval_loss: float | None = None
    last_eval_loss: float | None = None
    num_tokens: int = 0
    train_s: float = 0.0
    stopped_early: bool = False


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Replace the folder's checkpoint, atomically. Raises OSError; the old one stays then."""
    memory = io.BytesIO()
    values = {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    torch.save({"format": _FORMAT, **values}, memory)
    path = folder / FILE_NAME
    write_atomically(path, memory.getbuffer())
    return path


def load_checkpoint(folder: Path, run_key: str) -> Checkpoint | None:
    """Return the folder's checkpoint, or None. Raises ConfigError if it is of another run."""
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        values = torch.load(path, weights_only=True)
        if values.pop("format") != _FORMAT:
            raise ValueError("written by another version of Quickmatch")
        checkpoint = Checkpoint(**values)
    except Exception as error:
        raise ConfigError(
            f"cannot read checkpoint {path}: {error}; delete it to train from the start"
        ) from error
    if checkpoint.run_key != run_key:
        raise ConfigError(
            f"checkpoint {path} is of other data or settings than the job's; the dataset or the "
            "base model changed since. Create a new job"
        )
    return checkpoint


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new one, whole."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
