"""How a head's weights move: its matrices by Muon, its vocabulary and norms by AdamW.

Owns the two optimizers and the ratio of their rates. Muon's step changes a matrix by the same share
of its own size whatever its width, so one rate serves heads of every width; AdamW's falls with it.
On the shipped model Muon was after 31 steps beyond what AdamW alone, at its best rate, reached
after 63 (docs/lab-notes.md).
"""

from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from quickmatch.tuning.draft_head import DraftHead
from quickmatch.tuning.muon import Muon

LEARNING_RATE = 0.1  # of the matrices, at its highest
_VOCAB_RATE_TIMES_WIDTH = 25.6  # AdamW's rate ÷ Muon's: a tenth for a state of 256 numbers
_MAX_GRAD_NORM = 1.0
_WEIGHT_DECAY = 0.01


class HeadOptimizer:
    """Both optimizers as one."""

    def __init__(self, head: DraftHead) -> None:
        matrices: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        for name, parameter in head.named_parameters():
            is_matrix = parameter.dim() == 2 and name != "lm_head.weight"
            (matrices if is_matrix else rest).append(parameter)
        self._muon: Optimizer = Muon(matrices, weight_decay=_WEIGHT_DECAY)
        self._adamw: Optimizer = AdamW(rest, lr=0.0, betas=(0.9, 0.95), weight_decay=_WEIGHT_DECAY)
        self._parameters = [*matrices, *rest]
        self._ratio = _VOCAB_RATE_TIMES_WIDTH / head.config.hidden_size

    def step(self, learning_rate: float) -> None:
        """Apply the gradients, clipped, and drop them. learning_rate: of the matrices."""
        torch.nn.utils.clip_grad_norm_(self._parameters, _MAX_GRAD_NORM)
        for optimizer, rate in (
            (self._muon, learning_rate),
            (self._adamw, learning_rate * self._ratio),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])
