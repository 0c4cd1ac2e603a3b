"""From a deployment's document to the settings of an engine process.

Owns the checks of names and values; knows no process. Engine settings and speculation's are kept
apart in the document, because the former are part of what answers are cached under and the latter,
which change no answer, are not.
"""

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import msgspec

from quickmatch.core.errors import ConfigError
from quickmatch.core.sampling import SamplingParams
from quickmatch.core.shipped import model_source
from quickmatch.core.speculation_settings import SpeculationSettings
from quickmatch.engine.config import EngineConfig
from quickmatch.store.documents import Model

_ELSEWHERE = ("model", "speculation")  # fields of EngineConfig that the document has fields for
ENGINE_SETTINGS = tuple(f.name for f in fields(EngineConfig) if f.name not in _ELSEWHERE)


def engine_config(
    model: Model,
    settings: Mapping[str, Any],
    speculation: Mapping[str, Any] | None = None,
    *,
    draft_model: Model | None = None,
) -> EngineConfig:
    """Return a deployment's engine settings. Raises ConfigError with the nearest known name.

    draft_model: what `speculation["draft_model"]` names, if it is a model's name.
    """
    for name in settings:
        if name not in ENGINE_SETTINGS:
            near = difflib.get_close_matches(name, ENGINE_SETTINGS, n=1)
            known = ", ".join(ENGINE_SETTINGS)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {known}"
            raise ConfigError(f"unknown engine setting {name!r}; {hint}")
    values = {
        **settings,
        "model": model_source(model.path),
        "speculation": _speculation(speculation or {}, draft_model),
    }
    try:
        return msgspec.convert(values, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"engine settings: {error}") from error


def _speculation(settings: Mapping[str, Any], draft_model: Model | None) -> dict[str, Any]:
    values = SpeculationSettings.parse(settings).engine_values()
    if source := values.get("draft_model"):
        if draft_model is not None and draft_model.model_kind != "base":
            raise ConfigError(
                f"speculation.draft_model is {source!r}, a model of kind {draft_model.model_kind}; "
                "name a small base model with the same tokenizer (heads go live by "
                "`quickmatch load-draft`)"
            )
        values["draft_model"] = model_source(draft_model.path if draft_model else source)
    return values


def choice_sampling(sampling: SamplingParams, index: int) -> SamplingParams:
    """Return the sampling of one choice: the first has the caller's seed, others derived ones."""
    seed = sampling.seed
    if seed is not None and index:
        # One step of a splitmix generator: far from the seeds that a caller would use next.
        mixed = (seed + index * 0x9E3779B97F4A7C15) & (1 << 64) - 1
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
        seed = mixed >> 1
    return replace(sampling, seed=seed, stop=())
