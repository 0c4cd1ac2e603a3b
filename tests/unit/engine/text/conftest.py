from pathlib import Path

import pytest

from quickmatch.engine.text.tokenizer import Tokenizer
from tests.unit.engine.text.tokenizers_for_tests import (
    train_byte_level,
    train_sentencepiece,
    write_folder,
)


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(
        tmp_path_factory.mktemp("byte-level"),
        train_byte_level(),
        bos_token="<|bos|>",
        eos_token={"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        add_bos_token=False,  # transformers 5 lets tokenizer.json decide, and so do we
    )


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(
        tmp_path_factory.mktemp("sentencepiece"),
        train_sentencepiece(),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


@pytest.fixture(scope="session")
def byte_level(byte_level_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(byte_level_folder)


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(sentencepiece_folder)


@pytest.fixture(params=["byte_level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    loaded: Tokenizer = request.getfixturevalue(request.param)
    return loaded
