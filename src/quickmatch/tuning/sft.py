"""Supervised fine-tuning: the loop.

Owns steps, evaluation on the way, early stop and the moments at which a checkpoint is taken.
Knows no store and no processes: it tells a `Listener` what happens and asks it whether to stop.

Invariant: what a run computes depends on rows, settings and step number only. A run that is
killed and resumed makes the same steps on the same data, and ends at the same loss as one that
was never disturbed.

A loop of our own rather than transformers.Trainer, for two reasons: Trainer's checkpoints are
folders that a kill in mid-write leaves half-made, and it computes logits of every position,
learnt or not (see `loss`).
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from quickmatch.core.errors import ConfigError
from quickmatch.tuning.batches import collate, epoch_batches, ordered_batches
from quickmatch.tuning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from quickmatch.tuning.encode import Encoded
from quickmatch.tuning.load import Loaded, quiet_peft
from quickmatch.tuning.lora_product import fuse_lora
from quickmatch.tuning.loss import weighted_sums
from quickmatch.tuning.plan import Plan
from quickmatch.tuning.settings import SftSettings

logger = logging.getLogger(__name__)
_CHECKPOINT_EVERY_S = 15.0


class Stopped(Exception):
    """The listener asked to stop; the checkpoint is written."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step, as it is told."""

    step: int  # from 1
    loss: float  # nats a learnt token
    learning_rate: float
    num_tokens: int
    step_s: float
    acceptance: float | None = None  # of a draft: share of tokens foretold, one ahead


class Listener(Protocol):
    """Who is told of a run's course."""

    def on_step(self, report: StepReport) -> None:
        """Called after each step."""

    def on_eval(self, step: int, loss: float) -> None:
        """Called after each evaluation; step 0 is before training."""

    def on_phase(self, phase: str) -> None:
        """Called when the run goes over to something else."""

    def before_checkpoint(self) -> None:
        """Called before a checkpoint: a run resumed from it does not tell its steps again."""

    def should_stop(self) -> bool:
        """Asked before each step."""


@dataclass(slots=True)
class SftRun:
    """One run over encoded rows. `run` may be called once."""

    loaded: Loaded  # with trainable LoRA layers
    train: Sequence[Encoded]
    evaluation: Sequence[Encoded]
    settings: SftSettings
    plan: Plan
    folder: Path  # for the checkpoint
    run_key: str
    listener: Listener
    state: Checkpoint = field(init=False)
    _parameters: dict[str, torch.nn.Parameter] = field(init=False)
    _optimizer: torch.optim.Optimizer = field(init=False)

    def run(self) -> Checkpoint:
        """Train to the end and leave the final (or best) weights in the model.

        Raises Stopped when asked to, ConfigError if the loss is no number any more.
        """
        self._prepare()
        if self.evaluation and self.state.step == 0:
            self.state.first_eval_loss = self._evaluate()
        self.listener.on_phase("training")
        saved_at = time.monotonic()
        for batches in self._steps_left():
            if self.listener.should_stop():
                self._save()
                raise Stopped
            self._step(batches)
            if self.plan.is_eval_step(self.state.step) and self.evaluation:
                self._judge(self._evaluate())
            if self.state.stopped_early:
                break
            if self._checkpoint_due(saved_at):
                self._save()
                saved_at = time.monotonic()
        self._save()
        self._take_best()
        return self.state

    def _prepare(self) -> None:
        torch.manual_seed(self.settings.seed)
        named = self.loaded.model.named_parameters()
        self._parameters = {n: p for n, p in named if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=0.0, weight_decay=self.settings.optimizer_weight_decay
        )
        self.loaded.model.train()
        fuse_lora(self.loaded.model)
        found = load_checkpoint(self.folder, self.run_key)
        if found is None:
            self.state = Checkpoint(0, self.run_key, {}, {}, torch.get_rng_state())
            return
        self.state = found
        self._set_parameters(found.parameters)
        self._optimizer.load_state_dict(found.optimizer)
        torch.set_rng_state(found.rng)
        logger.info("resuming after step %d of %d", found.step, self.plan.total_steps)

    def _steps_left(self) -> Iterator[list[list[int]]]:
        """Yield each step's batches of row indexes, from the state's step on."""
        lengths = [len(row.token_ids) for row in self.train]
        accumulate, per_epoch = self.settings.gradient_accumulation_steps, self.plan.steps_per_epoch
        while self.state.step < self.plan.total_steps and not self.state.stopped_early:
            epoch, first = divmod(self.state.step, per_epoch)
            order = epoch_batches(lengths, self.settings.batch_size, self.settings.seed, epoch)
            for index in range(first, per_epoch):
                yield order[index * accumulate : (index + 1) * accumulate]

    def _step(self, groups: list[list[int]]) -> None:
        """Forward, backward, update; the loss is the mean over all learnt tokens of the step."""
        began = time.monotonic()
        rate = self.plan.rate_at(self.state.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        batches = [
            collate([self.train[i] for i in indexes], self.loaded.pad_id, self.loaded.device)
            for indexes in groups
        ]
        total_weight = sum(float(b.weights[:, 1:].sum()) for b in batches)
        loss = 0.0
        for batch in batches:
            with self.loaded.precision():
                nats, _ = weighted_sums(self.loaded.causal_lm, batch)
            scaled = nats / total_weight
            torch.autograd.backward(scaled)
            loss += float(scaled.detach())
        if not torch.isfinite(torch.tensor(loss)):
            raise ConfigError(
                f"the loss is {loss} at step {self.state.step + 1} with learning rate {rate:.2g}; "
                "lower learning_rate"
            )
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.settings.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._count(loss, rate, sum(b.num_tokens for b in batches), time.monotonic() - began)

    def _count(self, loss: float, rate: float, num_tokens: int, step_s: float) -> None:
        self.state.step += 1
        self.state.num_tokens += num_tokens
        self.state.train_s += step_s
        self.listener.on_step(StepReport(self.state.step, loss, rate, num_tokens, step_s))

    def _evaluate(self) -> float:
        """Return the mean loss of the evaluation rows, in nats a learnt token."""
        self.listener.on_phase("evaluating")
        loss = mean_loss(self.loaded, self.evaluation, self.settings.batch_size)
        self.loaded.model.train()
        self.state.last_eval_loss = loss
        self.listener.on_eval(self.state.step, loss)
        self.listener.on_phase("training")
        return loss

    def _judge(self, eval_loss: float) -> None:
        """Note a new best; stop early after too many evaluations without one."""
        if not self.settings.early_stop:
            return
        best = self.state.best_eval_loss
        if best is None or eval_loss < best:
            self.state.best_eval_loss, self.state.num_bad_evals = eval_loss, 0
            self.state.best_parameters = self._copy_parameters()
            return
        self.state.num_bad_evals += 1
        self.state.stopped_early = self.state.num_bad_evals >= self.settings.early_stop_patience

    def _take_best(self) -> None:
        if self.state.best_parameters:
            self._set_parameters(self.state.best_parameters)

    def _checkpoint_due(self, saved_at: float) -> bool:
        every = self.settings.checkpoint_every
        if every is not None:
            return self.state.step % every == 0
        return time.monotonic() - saved_at >= _CHECKPOINT_EVERY_S

    def _save(self) -> None:
        self.state.parameters = self._copy_parameters()
        self.state.optimizer = self._optimizer.state_dict()
        self.state.rng = torch.get_rng_state()
        self.listener.before_checkpoint()
        save_checkpoint(self.folder, self.state)

    def _copy_parameters(self) -> dict[str, Tensor]:
        return {n: p.detach().cpu().clone() for n, p in self._parameters.items()}

    def _set_parameters(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(values[name])


def mean_loss(loaded: Loaded, rows: Sequence[Encoded], batch_size: int) -> float:
    """Return the weighted mean loss over all learnt tokens, in nats; leaves the model in eval."""
    loaded.model.eval()
    nats = weight = 0.0
    with torch.no_grad():
        for indexes in ordered_batches([len(r.token_ids) for r in rows], batch_size):
            batch = collate([rows[i] for i in indexes], loaded.pad_id, loaded.device)
            with loaded.precision():
                total, total_weight = weighted_sums(loaded.causal_lm, batch)
            nats, weight = nats + float(total), weight + total_weight
    return nats / weight


def add_lora(loaded: Loaded, settings: SftSettings, base_name: str) -> Loaded:
    """Put fresh LoRA layers on a base; they start as zero, so the model starts as its base."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=_targets(settings),
        task_type="CAUSAL_LM",
    )
    try:
        with quiet_peft():
            model: Any = get_peft_model(loaded.model, config)
    except ValueError as error:
        raise ConfigError(f"target_modules do not fit the base model: {error}") from error
    model.peft_config["default"].base_model_name_or_path = base_name
    return Loaded(model, loaded.tokenizer, loaded.device, loaded.dtype)


def _targets(settings: SftSettings) -> str | list[str]:
    targets = settings.target_modules
    return targets if isinstance(targets, str) else list(targets)
