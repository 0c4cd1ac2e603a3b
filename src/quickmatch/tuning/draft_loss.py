"""What a head is trained to: the target's distribution at every step of its drafts.

Owns the loss (forward cross entropy per step, later steps weighing less) and the measure of how
far greedy drafts would get. Knows no data and no optimizer.

Source: EAGLE-3's training as SpecForge has it: sum over steps of 0.8^(step - 1) times the mean
cross entropy at the positions whose likeliest token the head can propose.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quickmatch.tuning.draft_head import MAX_KEPT, DraftHead, HeadBatch

STEP_WEIGHT = 0.8


@dataclass(slots=True)
class Foretold:
    """Sums over drafts, one entry a step.

    A draft counts in step k if the target has a choice there to foretell. `hits` counts those
    whose likeliest token at that step is the target's, `reached` those that had hit at every step
    up to it: with true tokens fed in, a greedy draft gets exactly so far. Tokens that the head
    cannot propose are misses.
    """

    nats: list[float]
    num_learnt: list[int]
    num_drafts: list[int]
    hits: list[int]
    reached: list[int]

    @classmethod
    def zero(cls, num_steps: int) -> "Foretold":
        """Return sums of nothing."""
        return cls([0.0] * num_steps, *([0] * num_steps for _ in range(4)))

    def add(self, other: "Foretold") -> None:
        """Add another batch's sums."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, [a + b for a, b in zip(mine, theirs, strict=True)])

    @property
    def loss(self) -> float:
        """Nats a token, steps weighted as in training."""
        means = [n / max(1, c) for n, c in zip(self.nats, self.num_learnt, strict=True)]
        return sum(STEP_WEIGHT**i * mean for i, mean in enumerate(means))

    @property
    def acceptance(self) -> list[float]:
        """Share of hits at each step, given the true tokens before it."""
        return [h / max(1, c) for h, c in zip(self.hits, self.num_drafts, strict=True)]

    @property
    def accepted_length(self) -> float:
        """Mean tokens a target step would emit with greedy drafts so deep, bonus included."""
        return 1.0 + sum(r / max(1, c) for r, c in zip(self.reached, self.num_drafts, strict=True))


def head_loss(head: DraftHead, batch: HeadBatch, num_steps: int) -> tuple[Tensor, Foretold]:
    """Return the loss with its gradient, and what was foretold."""
    total = torch.zeros((), device=batch.first.device)
    sums = Foretold.zero(num_steps)
    alive: Tensor | None = None  # drafts that have hit at every step so far
    for index, state in enumerate(head.unroll(batch, num_steps)):
        wanted = batch.wanted(index + 1)
        nats, best = _foretell(  # only what is foretold meets the vocabulary
            head,
            state[wanted],
            batch.target_ids[:, index:][wanted],
            batch.target_probs[:, index:][wanted],
        )
        num_learnt = len(best)
        if num_learnt:
            total = total + STEP_WEIGHT**index * nats / num_learnt
        hit = torch.zeros_like(wanted)
        hit[wanted] = best == batch.target_best[:, index:][wanted]
        alive = hit if alive is None else alive[:, : hit.shape[1]] & hit
        sums.nats[index] = float(nats.detach())
        sums.num_learnt[index] = num_learnt
        sums.num_drafts[index] = int((batch.num_drafts - index).clamp(min=0).sum())
        sums.hits[index] = int(hit.sum())
        sums.reached[index] = int(alive.sum())
    return total, sums


def _foretell(head: DraftHead, states: Tensor, ids: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the states' cross entropies, and the likeliest token of each."""
    size = max(1, MAX_KEPT // head.config.draft_vocab_size)
    if len(states) <= size:
        return _foretell_at_once(head, states, ids, probs)
    pieces = [
        checkpoint(_foretell_at_once, head, *piece, use_reentrant=False, preserve_rng_state=False)
        for piece in zip(*(torch.split(t, size) for t in (states, ids, probs)), strict=True)
    ]
    return torch.stack([n for n, _ in pieces]).sum(), torch.cat([best for _, best in pieces])


def _foretell_at_once(
    head: DraftHead, states: Tensor, ids: Tensor, probs: Tensor
) -> tuple[Tensor, Tensor]:
    logits = head.logits(states)
    return _cross_entropy(logits, ids, probs).sum(), logits.detach().argmax(-1)


def _cross_entropy(logits: Tensor, ids: Tensor, probs: Tensor) -> Tensor:
    """Return the cross entropy of each row: logits [n, draft_vocab], ids and probs [n, k]."""
    return torch.logsumexp(logits, -1) - (probs * logits.gather(-1, ids)).sum(-1)
