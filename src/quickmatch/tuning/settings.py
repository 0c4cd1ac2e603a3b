"""Settings of a fine-tuning job, under the names of the command line's flags.

Owns defaults and bounds. `None` means "auto": the job resolves it once, when it knows the model
and the data, and logs the value with its reason.
"""

import difflib
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quickmatch.core.errors import ConfigError

S = TypeVar("S", bound=BaseModel)


def parse_settings(kind: type[S], values: dict[str, Any]) -> S:
    """Return checked settings of a kind of job.

    Raises ConfigError that names the field and its bounds, or the nearest name of an unknown one.
    """
    for key in values:
        if key not in kind.model_fields:
            near = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.0)[0]
            raise ConfigError(f"unknown setting {key!r}; did you mean {near!r}?", param=key)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(
            f"{name} is {first.get('input')!r}: {first['msg'].lower()}", param=name
        ) from None


class SftSettings(BaseModel):
    """Supervised fine-tuning with LoRA."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lora_rank: int = Field(8, ge=1, le=512)
    lora_alpha: float | None = Field(None, gt=0)  # None: 2 x rank; scaling = alpha / rank
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    epochs: int = Field(1, ge=1, le=1000)
    learning_rate: float | None = Field(None, gt=0, le=1)  # None: by the model's size
    learning_rate_warmup_steps: int | None = Field(None, ge=0)  # None: 10 % of the steps
    batch_size: int = Field(8, ge=1)  # rows a forward
    gradient_accumulation_steps: int = Field(1, ge=1)  # forwards a step
    max_context_length: int | None = Field(None, ge=16)  # tokens; None: the model's own
    optimizer_weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    eval_auto_carveout: bool = False  # hold 10 % of the rows back, at most 200, to evaluate on
    eval_every: int | None = Field(None, ge=1)  # steps; None: about ten times a job
    early_stop: bool = False  # stop when the evaluation loss stops falling; keep the best
    early_stop_patience: int = Field(2, ge=1)  # evaluations without a new best
    checkpoint_every: int | None = Field(None, ge=1)  # steps; None: every 15 s
    seed: int = Field(0, ge=0, lt=1 << 32)
    warm_start_from: str = ""  # adapter to go on from
    num_threads: int | None = Field(None, ge=1)  # None: all cores
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "SftSettings":
        """Return checked settings. Raises ConfigError that names the field and its bounds."""
        return parse_settings(cls, values)

    @property
    def alpha(self) -> float:
        """LoRA's alpha, resolved."""
        return self.lora_alpha if self.lora_alpha is not None else 2.0 * self.lora_rank


def auto_learning_rate(num_parameters: int) -> tuple[float, str]:
    """Return a learning rate for LoRA on a model of that size, and why.

    Falls with width, as published recipes do: 2e-4 is usual at 7B, 1e-3 and more under 1B.
    """
    for bound, rate in ((50e6, 4e-3), (1e9, 1e-3), (4e9, 4e-4)):
        if num_parameters < bound:
            return rate, f"{num_parameters / 1e6:.1f}M parameters, under {bound / 1e6:.0f}M"
    return 2e-4, f"{num_parameters / 1e9:.1f}B parameters"
