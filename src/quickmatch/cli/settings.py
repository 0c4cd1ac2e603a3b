"""`--set KEY=VALUE`: a deployment's settings, checked before they are written.

Keys are `trace`, `speculation.NAME` and `engine.NAME`; values are JSON where they parse as JSON,
text otherwise; `null` goes back to the default. Invariant: what was written can be served, as far
as that can be told without loading anything.
"""

import difflib
import json
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from quickmatch.cli.session import Session
from quickmatch.core.errors import ConfigError
from quickmatch.core.speculation_settings import SpeculationSettings, engine_part
from quickmatch.store.documents import Deployment, Json, Model, ModelKind

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="speculation.NAME, engine.NAME or trace."),
]
_EXAMPLE = "write --set speculation.adapt=true"


@dataclass(slots=True)
class Changes:
    """What is to be set; a value None takes a setting back to its default."""

    speculation: Json = field(default_factory=dict)
    engine: Json = field(default_factory=dict)
    trace: bool | None = None

    def __bool__(self) -> bool:
        return bool(self.speculation or self.engine or self.trace is not None)

    @property
    def restarts(self) -> bool:
        """Whether a running engine has to be started again for them."""
        return bool(self.engine or engine_part(self.speculation))

    def apply(self, document: Deployment) -> None:
        """Change a deployment's document."""
        document.speculation = _merged(document.speculation, self.speculation)
        document.engine = _merged(document.engine, self.engine)
        if self.trace is not None:
            document.trace = self.trace


def parse_changes(pairs: list[str] | None) -> Changes:
    """Return what the pairs say. Raises ConfigError with the pair that is wrong."""
    changes = Changes()
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        group, _, name = key.strip().partition(".")
        if not equals:
            raise ConfigError(f"--set {pair!r} is not KEY=VALUE; {_EXAMPLE}")
        if group == "trace" and not name:
            changes.trace = _boolean(text)
        elif group == "speculation" and name:
            changes.speculation[name] = _value(text)
        elif group == "engine" and name:
            changes.engine[name] = _value(text)
        else:
            raise ConfigError(f"--set {key.strip()!r} is unknown; did you mean {_near(key)!r}?")
    return changes


def check_changes(
    session: Session, model: Model, deployment: Deployment | None, changes: Changes
) -> None:
    """Raise ConfigError if a deployment of `model` could not be served with these changes.

    A draft model that is a folder or a hub id is registered, as `serve` does.
    """
    from quickmatch.cli.models import ensure_model

    draft_model: Model | None = None
    if source := changes.speculation.get("draft_model"):
        draft_model = ensure_model(session, str(source))
        changes.speculation["draft_model"] = draft_model.id
    speculation = _merged(deployment.speculation if deployment else {}, changes.speculation)
    settings = SpeculationSettings.parse(speculation)
    if model.model_kind is ModelKind.REMOTE:
        if settings.adapt or settings.engine_values() or changes.engine:
            raise ConfigError(
                f"{model.id!r} is served by a remote provider, whose decoding is not ours to set; "
                "speculation and engine settings are for models that run here"
            )
        return
    from quickmatch.fleet.embedded_config import engine_config

    engine = _merged(deployment.engine if deployment else {}, changes.engine)
    engine_config(model, engine, speculation, draft_model=draft_model)


def _merged(old: Json, new: Json) -> Json:
    return {key: value for key, value in {**old, **new}.items() if value is not None}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def _boolean(text: str) -> bool:
    value = _value(text)
    if not isinstance(value, bool):
        raise ConfigError(f"trace is {text.strip()!r}; set it to true or false")
    return value


def _near(key: str) -> str:
    from quickmatch.fleet.embedded_config import ENGINE_SETTINGS

    known = ["trace", *(f"speculation.{name}" for name in SpeculationSettings.model_fields)]
    known += [f"engine.{name}" for name in ENGINE_SETTINGS]
    return difflib.get_close_matches(key.strip(), known, n=1, cutoff=0.0)[0]
