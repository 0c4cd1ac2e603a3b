"""Registering models: base models from a folder or hub id, adapters and drafts made elsewhere."""

import json
import re
import shutil
import time
from pathlib import Path

from quickmatch.cli.session import Session
from quickmatch.core.errors import (
    ConfigError,
    Conflict,
    ModelLoadError,
    ModelNotFound,
    QuickmatchError,
)
from quickmatch.core.ids import check_name
from quickmatch.core.shipped import model_source
from quickmatch.store.documents import Model, ModelKind
from quickmatch.store.protocol import require

_OF_HEADS = {"draft_vocab_size", "eagle_config", "speculators_model_type"}  # in config.json


def ensure_model(session: Session, source: str, name: str = "", *, spare: str = "") -> Model:
    """Return the model that `source` names; register a folder or hub id that is new.

    name: what to call it; left out, as its folder is called. spare: what to call it where another
    folder has that name already. The folder's parts are checked (and a hub id fetched) before
    anything is stored. Raises ModelLoadError, ModelNotFound, Conflict.
    """
    known = session.store.get(Model, name or source)
    if known is not None and (not name or name == source or known.path == _stored_path(source)):
        return known
    if known is not None:
        raise Conflict(f"model {name!r} exists, with path {known.path}; choose another --name")
    if not _is_folder_or_id(source):
        names = ", ".join(m.id for m in session.store.find(Model))
        raise ModelNotFound(f"no model, folder or hub id {source!r}; models: {names}")
    return _register(session, source, name or _default_name(source), spare)


def import_adapter(session: Session, name: str, path: str, base_model: str) -> Model:
    """Register a PEFT folder made elsewhere. Its weights are checked when it is loaded.

    Raises ModelLoadError if a file is missing, NotFound for an unknown base.
    """
    folder = Path(path).resolve()
    files = ("adapter_config.json", "adapter_model.safetensors")
    for file in files:
        if not (folder / file).is_file():
            raise ModelLoadError(
                f"{folder} has no {file}; a PEFT adapter's folder holds {' and '.join(files)}. "
                "If it is a head that drafts, give --kind draft"
            )
    if not base_model:
        raise ConfigError(f"{folder} is a LoRA adapter; name its base with --base-model")
    base = require(session.store, Model, base_model)
    model = Model(
        id=check_name(name, "model"),
        created_at=time.time(),
        model_kind=ModelKind.ADAPTER,
        path=str(folder),
        base_model=base.id,
        base_path=base.path,
        size_bytes=sum(f.stat().st_size for f in folder.glob("*.safetensors")),
    )
    session.store.insert(model)
    return model


def import_draft(
    session: Session, name: str, path: str, base_model: str, adapter: str = ""
) -> Model:
    """Copy a head made elsewhere (EAGLE-3's or speculators' folder) and register it.

    Raises ModelLoadError if it is not whole or does not fit the base, NotFound, ConfigError.
    """
    from quickmatch.engine.folder import resolve_model
    from quickmatch.engine.model_config import read_model_config
    from quickmatch.engine.speculation.head_config import EMBEDDING, check_fits
    from quickmatch.engine.speculation.head_folder import read_head

    folder = Path(path)
    if not path or not base_model:
        raise ConfigError("a draft is a folder for one model; give --path and --base-model")
    base = require(session.store, Model, base_model)
    if adapter and require(session.store, Model, adapter).base_model != base.id:
        raise ConfigError(f"{adapter!r} is no adapter of {base.id!r}; name one, or leave it out")
    config, tensors = read_head(folder)
    shape = read_model_config(resolve_model(model_source(base.path)))
    check_fits(config, shape, has_embedding=EMBEDDING in tensors)
    kept = session.home.models.absolute() / check_name(name, "model") / "1"
    shutil.rmtree(kept, ignore_errors=True)  # of a model that was deleted
    shutil.copytree(folder, kept)
    model = Model(
        id=name,
        created_at=time.time(),
        model_kind=ModelKind.DRAFT,
        path=str(kept),
        base_model=base.id,
        base_path=base.path,
        adapter=adapter,
        description=f"imported from {folder.resolve()}",
        size_bytes=sum(f.stat().st_size for f in kept.iterdir()),
    )
    session.store.insert(model)
    return model


def fits_base(session: Session, model: Model, base_name: str) -> bool:
    """Whether an adapter or a draft fits a base model: its own, or that one quantized.

    That the base was quantized from the model's own is seen by the fingerprint in its folder, and
    written down, so that a server may know it.
    """
    from quickmatch.engine.fingerprint import model_fingerprint, read_base_fingerprint
    from quickmatch.engine.folder import resolve_model

    base = require(session.store, Model, base_name)
    if model.is_made_for(base):
        return True
    try:
        noted = read_base_fingerprint(resolve_model(model_source(base.path)))
        own = model_fingerprint(resolve_model(model_source(model.base_path)))
    except (OSError, QuickmatchError):
        return False
    if noted != own:
        return False
    session.store.update(Model, base.id, lambda m: setattr(m, "quantized_from", model.base_model))
    return True


def is_adapter_folder(path: str) -> bool:
    """Whether `path` is a folder that PEFT saved."""
    return (Path(path) / "adapter_config.json").is_file()


def is_draft_folder(path: str) -> bool:
    """Whether `path` is a folder of a head, as EAGLE-3's or speculators' training writes it."""
    try:
        raw = json.loads((Path(path) / "config.json").read_text())
    except (OSError, ValueError):
        return False  # of another kind, or told in full by whoever reads it
    return isinstance(raw, dict) and not raw.keys().isdisjoint(_OF_HEADS)


def _register(session: Session, source: str, name: str, spare: str) -> Model:
    from quickmatch.engine.folder import resolve_model

    folder = resolve_model(model_source(source))
    path = _stored_path(source)
    taken: list[Model] = []
    for one in filter(None, (name, spare)):
        known = session.store.get(Model, check_name(one, "model"))
        if known is not None and known.path == path:
            return known
        if known is None:
            model = Model(
                id=one,
                created_at=time.time(),
                model_kind=ModelKind.BASE,
                path=path,
                size_bytes=sum(f.stat().st_size for f in folder.glob("*.safetensors")),
            )
            session.store.insert(model)
            return model
        taken.append(known)
    raise Conflict(
        f"model {taken[-1].id!r} exists, with path {taken[-1].path}; call this one otherwise: "
        f"quickmatch create model NAME --path {source}"
    )


def _is_folder_or_id(source: str) -> bool:
    return Path(source).exists() or "/" in source


def _stored_path(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def _default_name(source: str) -> str:
    tail = Path(source).resolve().name if Path(source).exists() else source.rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "-", tail).lstrip(".-_") or "model"
