"""A store on disk and a clock that a test moves."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from quickmatch.core.settings import Home
from quickmatch.store.open import open_store
from quickmatch.store.protocol import Store


@dataclass
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(Home(tmp_path))
    yield opened
    opened.close()
