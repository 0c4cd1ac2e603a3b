"""Makes each tiny model once a session, with a runner on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from quickmatch.engine.config import EngineConfig
from quickmatch.engine.runner import ModelRunner
from tests.parity.models import make_model, save_model

MadeModel = tuple[PreTrainedModel, Path]
transformers_logging.disable_progress_bar()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny operations on many threads spend their time waiting for one another."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], MadeModel]:
    """Return a function: kind -> (transformers model, its folder)."""
    cache: dict[str, MadeModel] = {}

    def make(kind: str) -> MadeModel:
        if kind not in cache:
            model = make_model(kind)
            cache[kind] = (model, save_model(model, tmp_path_factory.mktemp(kind)))
        return cache[kind]

    return make


def make_runner(folder: Path, **options: object) -> ModelRunner:
    """Return a runner in float32 with small blocks."""
    defaults: dict[str, object] = {
        "block_size": 4,
        "dtype": "float32",
        "kv_memory_bytes": 1 << 22,
        "num_threads": 1,
    }
    return ModelRunner(EngineConfig(model=str(folder), **{**defaults, **options}))  # type: ignore[arg-type]
