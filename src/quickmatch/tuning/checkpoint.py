"""Checkpoints: all that a run needs to go on exactly where it was.

Owns the file `checkpoint.pt` of a job, which a killed process or a full disk leaves as it was last
whole. It holds the trained parameters and the optimizer's state in float32: some three times a
head's size.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quickmatch.core.errors import ConfigError
from quickmatch.core.files import replacing
from quickmatch.tuning.jobs import CHECKPOINT

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
    values = {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    path = folder / CHECKPOINT
    with replacing(path) as file:
        try:
            torch.save({"format": _FORMAT, **values}, file)
        except RuntimeError as error:  # torch's own, behind which it hides a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
    return path


def load_checkpoint(folder: Path, run_key: str) -> Checkpoint | None:
    """Return the folder's checkpoint, or None. Raises ConfigError if it is of another run."""
    path = folder / CHECKPOINT
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
