"""What an operator says about a deployment's speculation: the engine's part and the loop's.

Owns the names, their bounds and what an unset one means. Kept in the deployment's document as
plain JSON of the values that were set; the engine's own defaults hold for the others, so they
are not repeated here. Invariant: settings change how soon tokens come, never which.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from quickmatch.core.errors import ConfigError


def _listed(value: Any) -> Any:
    """Read "suffix,head" as a list, "off" as none; "auto" as unset."""
    if value == "auto":
        return None
    if isinstance(value, str):
        return [] if value == "off" else [name.strip() for name in value.split(",")]
    return value


class SpeculationSettings(BaseModel):
    """Settings of one deployment. None: the engine's default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # the engine's: a change starts it again
    drafters: Annotated[tuple[str, ...] | None, BeforeValidator(_listed)] = None  # (): none
    draft_model: str = ""  # a model's name, or a folder: a small model with the same tokenizer
    max_draft_tokens: int | None = Field(None, ge=1)  # a sequence and step
    max_depth: int | None = Field(None, ge=1)  # of these, in a line
    suffix_max_tokens: int | None = Field(None, ge=1)  # past outputs remembered
    suffix_min_confidence: float | None = Field(None, gt=0, le=1)
    min_path_probability: float | None = Field(None, gt=0, le=1)
    is_adaptive: bool | None = None  # False: always draft as deep as allowed
    calibration_s: float | None = Field(None, ge=0)
    # the adaptation loop's: read each time that it looks
    adapt: bool = False  # train heads on recorded traffic and put the better ones live
    adapt_min_requests: int = Field(200, ge=8)  # new recorded calls before a head is trained
    adapt_max_requests: int = Field(2000, ge=8)  # the newest of them that are trained on
    adapt_interval_s: float = Field(600.0, ge=0)  # from one training to the next, at least
    adapt_min_gain: float = Field(0.03, ge=0, lt=1)  # of speed or accepted length, at the gate
    adapt_watch_requests: int = Field(100, ge=8)  # calls that a new head is judged by
    per_adapter_heads: bool = True  # adapters get heads of their own; False: the base model alone

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "SpeculationSettings":
        """Return checked settings. Raises ConfigError that names the key, or the nearest one."""
        for key in values:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(key, cls.model_fields, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"unknown setting speculation.{key}; did you mean speculation.{near}?"
                )
        try:
            settings = cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ConfigError(
                f"speculation.{first['loc'][0]} is {first.get('input')!r}: {first['msg'].lower()}"
            ) from None
        if settings.adapt and not settings.may_draft_with("head"):
            raise ConfigError(
                f"speculation.adapt trains heads, but speculation.drafters is "
                f"{','.join(settings.drafters or ()) or 'off'}; add 'head' to it"
            )
        return settings

    def may_draft_with(self, drafter: str) -> bool:
        """Whether that drafter is allowed."""
        return self.drafters is None or drafter in self.drafters

    def engine_values(self) -> dict[str, Any]:
        """Return what was set of the engine's part, under the names of the engine's config."""
        values = {name: getattr(self, name) for name in engine_names()}
        return {name: value for name, value in values.items() if value not in (None, "")}


def engine_names() -> tuple[str, ...]:
    """Return the names of the settings that an engine is started with."""
    names = tuple(SpeculationSettings.model_fields)
    return names[: names.index("adapt")]


def engine_part(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a running engine cannot change of unchecked settings, unknown keys included."""
    loops = set(SpeculationSettings.model_fields) - set(engine_names())
    return {key: value for key, value in values.items() if key not in loops}
