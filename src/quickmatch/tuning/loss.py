"""The loss of a batch: cross entropy of the learnt tokens, and of no others.

Owns the way from hidden states to a loss. Only positions whose next token is learnt go through
the output matrix: on an 8M-parameter model with a vocabulary of 8,192, where 40 % of the tokens
are learnt, that made a step 13 % faster. Models that rescale their logits go through their own
forward instead.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from quickmatch.tuning.batches import Batch

_RESCALING = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def token_losses(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss of each learnt token and its weight: two float32 [num_learnt], row-major.

    model: a transformers causal language model, LoRA layers in place.
    """
    targets, weights = batch.token_ids[:, 1:], batch.weights[:, 1:]
    learnt = weights != 0  # [num_rows, length - 1]
    if any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in _RESCALING):
        logits = model(input_ids=batch.token_ids, use_cache=False).logits[:, :-1][learnt]
    else:
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        states = decoder(input_ids=batch.token_ids, use_cache=False).last_hidden_state
        logits = head(states[:, :-1][learnt])  # [num_learnt, vocab]
    losses = functional.cross_entropy(logits.float(), targets[learnt], reduction="none")
    return losses, weights[learnt]


def weighted_sums(model: Any, batch: Batch) -> tuple[Tensor, float]:
    """Return the weighted sum of the losses (with gradient) and the sum of the weights."""
    losses, weights = token_losses(model, batch)
    return torch.dot(losses, weights), float(weights.sum())
