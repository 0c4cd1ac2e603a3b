"""Training of a head: the loop.

Owns steps, the learning rate's course and the moments at which a checkpoint is taken. Knows no
store and no processes: it tells a `sft.Listener` what happens and asks it whether to stop.

Invariant: what a run computes depends on the sequences, the settings and the step number alone, so
that a run that is killed and resumed makes the same steps on the same data.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from quickmatch.core.errors import ConfigError
from quickmatch.tuning.batches import epoch_batches, ordered_batches
from quickmatch.tuning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from quickmatch.tuning.draft_data import TokenSequence
from quickmatch.tuning.draft_features import TargetFeatures
from quickmatch.tuning.draft_head import DraftHead
from quickmatch.tuning.draft_loss import Foretold, head_loss
from quickmatch.tuning.draft_optimizer import HeadOptimizer
from quickmatch.tuning.draft_settings import DraftSettings
from quickmatch.tuning.plan import Plan
from quickmatch.tuning.sft import Listener, StepReport, Stopped

logger = logging.getLogger(__name__)
_CHECKPOINT_EVERY_S = 15.0


@dataclass(slots=True)
class DraftRun:
    """One run. `run` may be called once."""

    head: DraftHead
    features: TargetFeatures
    train: Sequence[TokenSequence]
    settings: DraftSettings
    plan: Plan
    folder: Path  # for the checkpoint
    run_key: str
    listener: Listener
    state: Checkpoint = field(init=False)
    _parameters: dict[str, torch.nn.Parameter] = field(init=False)
    _optimizer: HeadOptimizer = field(init=False)

    def run(self) -> Checkpoint:
        """Train to the end and leave the weights in the head.

        Raises Stopped when asked to, ConfigError if the loss is no number any more.
        """
        self._prepare()
        self.listener.on_phase("training")
        saved_at = time.monotonic()
        for indexes in self._steps_left():
            if self.listener.should_stop():
                self._save()
                raise Stopped
            self._step([self.train[i] for i in indexes])
            if self._checkpoint_due(saved_at):
                self._save()
                saved_at = time.monotonic()
        self._save()
        return self.state

    def _prepare(self) -> None:
        self._parameters = dict(self.head.named_parameters())
        self._optimizer = HeadOptimizer(self.head)
        found = load_checkpoint(self.folder, self.run_key)
        if found is None:
            self.state = Checkpoint(0, self.run_key, {}, {}, torch.get_rng_state())
            return
        self.state = found
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(found.parameters[name])
        self._optimizer.load_state_dict(found.optimizer)
        logger.info("resuming after step %d of %d", found.step, self.plan.total_steps)

    def _steps_left(self) -> Iterator[list[int]]:
        """Yield each step's sequences by index, from the state's step on."""
        lengths = [len(s) for s in self.train]
        while self.state.step < self.plan.total_steps:
            epoch, first = divmod(self.state.step, self.plan.steps_per_epoch)
            order = epoch_batches(lengths, self.settings.batch_size, self.settings.seed, epoch)
            yield from order[first : first + self.plan.total_steps - self.state.step]

    def _step(self, sequences: list[TokenSequence]) -> None:
        began = time.monotonic()
        rate = self.plan.rate_at(self.state.step)
        nats, foretold = self._learn(sequences)
        if not math.isfinite(nats):
            raise ConfigError(
                f"the loss is {nats} at step {self.state.step + 1} with learning rate "
                f"{rate:.2g}; lower learning_rate"
            )
        self._optimizer.step(rate)
        self.state.step += 1
        num_tokens, seconds = sum(map(len, sequences)), time.monotonic() - began
        self.state.num_tokens += num_tokens
        self.state.train_s += seconds
        hit_rate = foretold.acceptance[0]
        step = self.state.step
        self.listener.on_step(
            StepReport(step, nats, rate, num_tokens, seconds, acceptance=hit_rate)
        )

    def _learn(self, sequences: list[TokenSequence]) -> tuple[float, Foretold]:
        """Add up the gradients of a batch's parts, each by its share of the drafts."""
        budget = self.features.budget
        num_drafts = sum(budget.sight(s).num_drafts for s in sequences)
        nats, foretold = 0.0, Foretold.zero(self.settings.unroll_steps)
        for part in budget.parts(sequences):
            share = sum(budget.sight(s).num_drafts for s in part) / num_drafts
            loss, sums = head_loss(self.head, self.features.batch(part), budget.num_steps)
            if loss.requires_grad:  # not where the head can propose none of the tokens
                torch.autograd.backward(loss * share)
            nats += float(loss.detach()) * share
            foretold.add(sums)
        return nats, foretold

    def _checkpoint_due(self, saved_at: float) -> bool:
        every = self.settings.checkpoint_every
        if every is not None:
            return self.state.step % every == 0
        return time.monotonic() - saved_at >= _CHECKPOINT_EVERY_S

    def _save(self) -> None:
        self.state.parameters = {n: p.detach().cpu().clone() for n, p in self._parameters.items()}
        self.state.optimizer = self._optimizer.state_dict()
        self.listener.before_checkpoint()
        save_checkpoint(self.folder, self.state)


def simulate(
    head: DraftHead,
    features: TargetFeatures,
    sequences: Sequence[TokenSequence],
    *,
    num_steps: int,
    batch_size: int,
) -> Foretold:
    """Return how far greedy drafts get on true tokens: no drafting, no engine, no clock."""
    sums = Foretold.zero(num_steps)
    with torch.no_grad():
        for indexes in ordered_batches([len(s) for s in sequences], batch_size):
            for part in features.budget.parts([sequences[i] for i in indexes]):
                sums.add(head_loss(head, features.batch(part), num_steps)[1])
    return sums
