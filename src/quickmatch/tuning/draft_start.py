"""The head that a run begins with: fresh, or an earlier one.

A fresh head is random. To begin with the target's own lm_head, norm or last layer looked better for
the first thirty steps with AdamW and was worse from then on (docs/lab-notes.md).
"""

import logging
from pathlib import Path

import torch
from torch import nn

from quickmatch.core.errors import ConfigError
from quickmatch.engine.loader import Checkpoint
from quickmatch.engine.model_config import ModelConfig
from quickmatch.engine.runner import ModelRunner
from quickmatch.engine.speculation.head_config import (
    HeadConfig,
    check_fits,
    default_aux_layers,
    new_head_config,
)
from quickmatch.engine.speculation.head_folder import read_head
from quickmatch.tuning.draft_head import DraftHead

logger = logging.getLogger(__name__)
_SMALL_STD = 0.02  # of what is added to the state, and of the vocabulary's rows
_SMALL = ("o_proj.weight", "down_proj.weight", "lm_head.weight")


def new_head(runner: ModelRunner, draft_ids: list[int], seed: int) -> DraftHead:
    """Return a fresh head for the runner's model, float32, on its device."""
    model, device = runner.model_config, runner.device
    config = new_head_config(model, draft_vocab_size=len(draft_ids))
    weights = Checkpoint(runner.folder, dtype=runner.dtype, device=device)
    embedding = weights.matrix("model.embed_tokens.weight", model.vocab_size, model.hidden_size)
    torch.manual_seed(seed)
    head = DraftHead(config, embedding, torch.tensor(draft_ids, device=device)).to(device)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if parameter.dim() == 2:
                std = _SMALL_STD if name.endswith(_SMALL) else parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=std)
    return head


def earlier_head(runner: ModelRunner, folder: Path, draft_ids: list[int], seed: int) -> DraftHead:
    """Return a head that goes on from a folder's; tokens that are new to it start afresh.

    Raises ModelLoadError if it does not fit the model, ConfigError if its layer has another shape.
    """
    config, tensors = read_head(folder)
    check_fits(config, runner.model_config, has_embedding=False)
    head = new_head(runner, draft_ids, seed)
    _check_same_layer(config, head.config, runner.model_config, folder)
    num_kept = head.load(tensors)
    logger.info("going on from %s: %d of %d draft tokens kept", folder, num_kept, len(draft_ids))
    return head


def _check_same_layer(old: HeadConfig, new: HeadConfig, model: ModelConfig, folder: Path) -> None:
    """A warm start keeps every weight, so all that gives them their meaning must be the same."""
    for name in ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim",
                 "norm_before_residual", "aux_layers"):  # fmt: skip
        seen, needed = getattr(old, name), getattr(new, name)
        if name == "aux_layers":
            seen = seen or default_aux_layers(model.num_layers)
        if seen != needed:
            raise ConfigError(
                f"warm_start_from: the head in {folder} has {name} {seen}, a new one for this "
                f"model {needed}; start afresh without warm_start_from"
            )
