"""What a verb works with: the home and its store, opened for the length of the verb."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from quickmatch.core.settings import Home
from quickmatch.store.protocol import Store


@dataclass(frozen=True, slots=True)
class Session:
    """One verb's view of the installation."""

    home: Home
    store: Store


@contextmanager
def open_session() -> Iterator[Session]:
    """Open the store in the home, mark jobs whose process is gone, close it at the end."""
    from quickmatch.store.open import open_store
    from quickmatch.tuning.jobs import refresh

    home = Home.from_environment()
    store = open_store(home)
    try:
        refresh(store)
        yield Session(home, store)
    finally:
        store.close()
