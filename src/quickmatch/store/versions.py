"""Versions of trained models by the way people name them: NAME, the newest, or NAME@VERSION."""

from pathlib import Path

from quickmatch.core.errors import ConfigError, NotFound
from quickmatch.store.documents import Model, ModelKind
from quickmatch.store.protocol import Store, require


def require_draft(store: Store, spelled: str) -> tuple[Model, int]:
    """Return a draft and the version that is meant.

    Raises NotFound if there is no such model or version, or it was deleted; ConfigError if it is
    no draft.
    """
    name, _, version = spelled.partition("@")
    model = require(store, Model, name)
    if model.model_kind is not ModelKind.DRAFT:
        raise ConfigError(f"{name!r} is a model of kind {model.model_kind}, not a draft")
    number = model.version if not version else int(version) if version.isdigit() else 0
    if not 1 <= number <= model.version:
        raise NotFound(f"draft {name!r} has no version {version!r}; the newest is {model.version}")
    if not _is_there(model, number):
        left = [str(n) for n in range(1, model.version + 1) if _is_there(model, n)]
        raise NotFound(
            f"version {number} of draft {name!r} is deleted; take one of {', '.join(left)}"
        )
    return model, number


def _is_there(model: Model, version: int) -> bool:
    """Whether a version's folder is; the newest one is never deleted alone."""
    return version == model.version or Path(model.path_of(version)).is_dir()
