"""Settings of a draft job, under the names of the command line's flags.

Owns defaults and bounds. `None` means "auto": the job resolves it once, when it knows the model
and the data, and logs the value with its reason.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from quickmatch.tuning.settings import parse_settings


class DraftSettings(BaseModel):
    """Training of a head that drafts for one model, with one adapter or none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # what is learnt from
    regenerate: bool | None = None  # let the target write the answers; None: wherever another did
    temperature: float = Field(0.0, ge=0, le=2)  # at which it writes them; 0: greedy
    max_output_tokens: int = Field(256, ge=1)  # that it writes a prompt
    max_context_length: int | None = Field(None, ge=16)  # tokens a sequence; None: the target's
    max_sequences: int | None = Field(None, ge=2)  # the newest so many; None: all
    holdout: float = Field(0.1, gt=0, lt=1)  # share that the gate measures on; of traces the newest
    keep_data: bool = False  # keep the collected token ids after the end (for looking into it)
    # how
    epochs: int | None = Field(None, ge=1, le=1000)  # None: by the amount of data
    max_steps: int | None = Field(None, ge=1)  # stops earlier than the epochs would
    learning_rate: float | None = Field(None, gt=0, le=1)  # of the matrices, by Muon; None: 0.1
    batch_size: int = Field(8, ge=1)  # sequences a step
    # Rows that a step holds in memory at once: a token is one, a token of an answer unroll_steps
    # more. A step of more is taken in parts. Of a single sequence of more, the head learns on the
    # answer's beginning, and sees the prompt's end: the target reads all of the prompt.
    max_batch_rows: int = Field(16384, ge=256)
    unroll_steps: int = Field(5, ge=1, le=16)  # how deep it learns to draft on its own states
    draft_vocab_size: int | None = Field(None, ge=16)  # tokens that it can propose
    warm_start_from: str = ""  # NAME or NAME@VERSION of a draft to go on from
    checkpoint_every: int | None = Field(None, ge=1)  # steps; None: every 15 s
    seed: int = Field(0, ge=0, lt=1 << 32)
    num_threads: int | None = Field(None, ge=1)  # None: all cores
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the target; auto: as it is served
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # what becomes of it
    force: bool = False  # publish even what does not beat what stands

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "DraftSettings":
        """Return checked settings. Raises ConfigError that names the field and its bounds."""
        return parse_settings(cls, values)
