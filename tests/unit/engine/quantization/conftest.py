"""A tiny model folder whose layers need groups of two sizes."""

from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from tests.parity.models import make_model, save_model

transformers_logging.disable_progress_bar()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of width 48 and 96: int4's groups of 32 fit one of the two."""
    path = save_model(make_model("llama"), tmp_path_factory.mktemp("llama"))
    (path / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (path / "README.md").write_text("of the unquantized model", encoding="utf-8")
    return path
