"""What a run will do, worked out before its first step: steps, learning rates, evaluations.

Owns the arithmetic of schedules. Plain Python, so that it is tested without a model.
"""

import math
from dataclasses import dataclass

from quickmatch.tuning.settings import SftSettings

_MAX_EVALUATIONS = 10  # a run, unless eval_every says otherwise
_EVAL_TIME_SHARE = 0.1  # of the training time
_STEP_COST = 3.0  # of a row's forward, backward and all, in forwards
_WARMUP_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """Resolved numbers of a run."""

    num_rows: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    eval_every: int
    learning_rate: float  # the highest

    @classmethod
    def of(
        cls, settings: SftSettings, num_rows: int, num_eval_rows: int, learning_rate: float
    ) -> "Plan":
        """Resolve what is auto. A step is `gradient_accumulation_steps` batches of rows.

        Evaluations take about a tenth of the training's time, and there are at most ten.
        """
        batches = math.ceil(num_rows / settings.batch_size)
        per_epoch = math.ceil(batches / settings.gradient_accumulation_steps)
        total = per_epoch * settings.epochs
        warmup = settings.learning_rate_warmup_steps
        work = num_rows * settings.epochs * _STEP_COST
        affordable = int(work * _EVAL_TIME_SHARE / max(1, num_eval_rows))
        num_evals = min(_MAX_EVALUATIONS, max(1, affordable))
        return cls(
            num_rows=num_rows,
            steps_per_epoch=per_epoch,
            total_steps=total,
            warmup_steps=round(total * _WARMUP_SHARE) if warmup is None else min(warmup, total),
            eval_every=settings.eval_every or math.ceil(total / num_evals),
            learning_rate=learning_rate,
        )

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step (from 0): linear warm-up, then a cosine to zero."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        span = max(1, self.total_steps - self.warmup_steps)
        done = (step - self.warmup_steps) / span
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    def is_eval_step(self, num_done: int) -> bool:
        """Whether to evaluate after that many steps; always after the last."""
        return num_done % self.eval_every == 0 or num_done == self.total_steps
