"""Makes what a job trained a model: files in the home, then a document.

Owns the folder `models/NAME/VERSION`. It is written beside and renamed when whole, and the
document is written last, so that whoever finds a version in the store finds its files.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quickmatch.core.clock import wall
from quickmatch.core.errors import Conflict
from quickmatch.core.settings import Home
from quickmatch.core.shipped import model_source
from quickmatch.engine.fingerprint import write_base_fingerprint
from quickmatch.engine.folder import resolve_model
from quickmatch.store.documents import Job, Model, ModelKind
from quickmatch.store.protocol import Store


def publish_adapter(store: Store, home: Home, job: Job, base: Model, model: Any) -> Model:
    """Save a PEFT model as the job's output; a name that exists gets its next version.

    Doing it again for the same job changes nothing. Raises OSError where the disk is full.
    """

    def write(folder: Path) -> None:
        # The embeddings are the base's; saying so spares PEFT a look at the hub.
        model.save_pretrained(folder, save_embedding_layers=False)
        write_base_fingerprint(folder, resolve_model(model_source(base.path)))

    description = f"LoRA rank {job.settings.get('lora_rank')} on {job.dataset}"
    return _publish(store, home, job, base, ModelKind.ADAPTER, description, write)


def publish_draft(
    store: Store, home: Home, job: Job, base: Model, *, head: Path, description: str
) -> Model:
    """Copy a head's folder as the job's output; a name that exists gets its next version.

    Doing it again for the same job changes nothing. Raises OSError where the disk is full.
    """

    def write(folder: Path) -> None:
        shutil.copytree(head, folder)

    return _publish(store, home, job, base, ModelKind.DRAFT, description, write)


def _publish(
    store: Store,
    home: Home,
    job: Job,
    base: Model,
    kind: ModelKind,
    description: str,
    write: Callable[[Path], None],
) -> Model:
    old = store.get(Model, job.output_model)
    if old is not None and old.source_job == job.id:
        return old
    version = old.version + 1 if old else 1
    final = home.models.absolute() / job.output_model / str(version)
    partial = final.with_name(f".{job.id}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial)
        _flush(partial)
        shutil.rmtree(final, ignore_errors=True)  # left by a crash between rename and document
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    document = Model(
        id=job.output_model,
        created_at=wall(),
        model_kind=kind,
        version=version,
        path=str(final),
        elsewhere=_imported(old, final),
        base_model=base.id,
        base_path=base.path,
        adapter=job.adapter,
        description=description,
        source_job=job.id,
        size_bytes=sum(f.stat().st_size for f in final.iterdir()),
    )
    return _register(store, job, document)


def _imported(old: Model | None, final: Path) -> dict[int, str]:
    """Return where versions lie that were not trained here: the first, if any."""
    if old is None:
        return {}
    is_ours = Path(old.path).parent == final.parent
    return old.elsewhere if is_ours else {**old.elsewhere, old.version: old.path}


def _register(store: Store, job: Job, document: Model) -> Model:
    if document.version == 1:
        store.insert(document)
        return document

    def replace(model: Model) -> None:
        before = (document.model_kind, document.version - 1)
        if (model.model_kind, model.version) != before:
            raise Conflict(f"model {model.id!r} was changed while job {job.id} was running")
        for name in Model.model_fields:
            if name not in ("id", "created_at", "revision"):
                setattr(model, name, getattr(document, name))

    return store.update(Model, document.id, replace)


def _flush(folder: Path) -> None:
    """Wait until the files are on the disk, before their folder gets its final name."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
