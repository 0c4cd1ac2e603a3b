"""Registering base models: from a name that is known, a folder, or a hub id."""

import re
import time
from pathlib import Path

from quickmatch.cli.session import Session
from quickmatch.core.errors import Conflict, ModelNotFound
from quickmatch.core.ids import check_name
from quickmatch.core.shipped import model_source
from quickmatch.store.documents import Model, ModelKind


def ensure_model(session: Session, source: str, name: str = "") -> Model:
    """Return the model that `source` names; register a folder or hub id that is new.

    The folder's parts are checked (and a hub id fetched) before anything is stored.
    Raises ModelLoadError, ModelNotFound, Conflict.
    """
    known = session.store.get(Model, name or source)
    if known is not None and (not name or name == source or known.path == _stored_path(source)):
        return known
    if known is not None:
        raise Conflict(f"model {name!r} exists, with path {known.path}; choose another --name")
    if not _is_folder_or_id(source):
        names = ", ".join(m.id for m in session.store.find(Model))
        raise ModelNotFound(f"no model, folder or hub id {source!r}; models: {names}")
    return _register(session, source, name)


def _register(session: Session, source: str, name: str) -> Model:
    from quickmatch.engine.folder import resolve_model

    folder = resolve_model(model_source(source))
    model = Model(
        id=check_name(name or _default_name(source), "model"),
        created_at=time.time(),
        model_kind=ModelKind.BASE,
        path=_stored_path(source),
        size_bytes=sum(f.stat().st_size for f in folder.glob("*.safetensors")),
    )
    known = session.store.get(Model, model.id)
    if known is not None and known.path == model.path:
        return known
    if known is not None:
        raise Conflict(f"model {model.id!r} exists, with path {known.path}; give --name")
    session.store.insert(model)
    return model


def _is_folder_or_id(source: str) -> bool:
    return Path(source).exists() or "/" in source


def _stored_path(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def _default_name(source: str) -> str:
    tail = Path(source).resolve().name if Path(source).exists() else source.rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "-", tail).lstrip(".-_") or "model"
