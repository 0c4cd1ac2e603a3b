"""Batches: which rows a step trains on. A batch depends on (seed, step) alone, so resume is exact.

A row is one of three kinds: dense token strings (stage 0), chat tasks packed one after another,
or a window of natural text. Chat rows carry a loss on what the assistant says, text rows on all.
"""

from __future__ import annotations

from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from recipes.base_model import dense
from recipes.base_model.settings import Phase
from recipes.base_model.tasks import Turns, draw_task
from recipes.base_model.text import Source
from recipes.base_model.words import Words


def encode_chat(tokenizer: Tokenizer, turns: Turns) -> tuple[list[int], list[float]]:
    """ChatML ids of a conversation, and 1.0 on each token that the assistant says."""
    ids: list[int] = []
    weights: list[float] = []
    for question, answer in turns:
        asked = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        for text, weight in ((asked, 0.0), (f"{answer}<|im_end|>", 1.0), ("\n", 0.0)):
            piece = tokenizer.encode(text).ids
            ids += piece
            weights += [weight] * len(piece)
    return ids, weights


class Batches:
    """Rows of tokens and loss weights for each step."""

    def __init__(
        self, tokenizer: Tokenizer, sources: list[Source], shares: dict[str, float], seed: int
    ) -> None:
        self.tokenizer = tokenizer
        self.words = Words.of(tokenizer)
        self.seed = seed
        self.sources = [source for source in sources if len(source.train)]
        chances = np.array([shares.get(source.name, 1.0) for source in self.sources])
        self.chances = chances / chances.sum() if len(chances) else chances

    def batch(self, step: int, phase: Phase) -> tuple[Tensor, Tensor, list[str]]:
        """Tokens int64 [rows, length], weights float32 [rows, length], the kind of each row."""
        rng = np.random.default_rng((self.seed, step))
        kinds = [self._kind(rng, phase) for _ in range(phase.rows)]
        rows = [self._row(rng, kind, phase) for kind in kinds]
        tokens = torch.from_numpy(np.stack([row[0] for row in rows]).astype(np.int64))
        weights = torch.from_numpy(np.stack([row[1] for row in rows]).astype(np.float32))
        return tokens, weights, kinds

    def _kind(self, rng: np.random.Generator, phase: Phase) -> str:
        drawn = rng.random()
        if drawn < phase.dense_share:
            return "repeats" if rng.random() < 0.5 else "pairs"
        if drawn < phase.dense_share + phase.text_share and self.sources:
            return self.sources[rng.choice(len(self.sources), p=self.chances)].name
        return "chat"

    def _row(self, rng: np.random.Generator, kind: str, phase: Phase) -> tuple[np.ndarray, ...]:
        if kind == "repeats":
            return dense.repeats(rng, phase.length, phase.dense_vocab)
        if kind == "pairs":
            return dense.pairs(rng, phase.length, phase.dense_vocab)
        if kind == "chat":
            return self._chat_row(rng, phase)
        text = next(source.train for source in self.sources if source.name == kind)
        start = rng.integers(0, max(1, len(text) - phase.length))
        window = np.resize(text[start : start + phase.length], phase.length)
        return window, np.full(phase.length, phase.text_weight)

    def _chat_row(self, rng: np.random.Generator, phase: Phase) -> tuple[np.ndarray, ...]:
        """Whole conversations while they fit; the last is cut, at the row's end."""
        python_rng = Random(int(rng.integers(2**63)))
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < phase.length:
            turns = draw_task(python_rng, self.words, phase.tasks)
            more_ids, more_weights = encode_chat(self.tokenizer, turns)
            if len(more_ids) > phase.length and python_rng.random() < 0.9:
                continue  # too long for this phase
            ids += more_ids
            weights += more_weights
        return np.array(ids[: phase.length]), np.array(weights[: phase.length])
