"""Opens the store of a home: makes folder and file, migrates, registers the shipped model."""

from pathlib import Path

from quickmatch.core.clock import wall
from quickmatch.core.errors import Conflict, StoreError
from quickmatch.core.settings import Home
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.store.documents import Model, ModelKind
from quickmatch.store.protocol import Store
from quickmatch.store.sqlite import SqliteStore


def open_store(home: Home) -> Store:
    """Return the home's store, ready for use. Raises StoreError with the remedy."""
    try:
        home.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the home folder {home.root}: {error.strerror}; "
            "make it writable or set QUICKMATCH_HOME to another folder"
        ) from error
    store = SqliteStore(home.store_path)
    try:
        _register_shipped(store)
    except BaseException:
        store.close()
        raise
    return store


def _register_shipped(store: Store) -> None:
    if store.get(Model, SHIPPED_MODEL) is not None:
        return
    folder = Path(model_source(SHIPPED_MODEL))
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    shipped = Model(
        id=SHIPPED_MODEL,
        created_at=wall(),
        model_kind=ModelKind.BASE,
        path=SHIPPED_MODEL,
        description="The small base model that ships with Quickmatch.",
        size_bytes=size,
    )
    try:
        store.insert(shipped)
    except Conflict:
        return  # another process opened the same new home at once
