"""A folder that has a SentencePiece model alone is read as SentencePiece itself reads it."""

import json
from pathlib import Path

import pytest
import sentencepiece

from quickmatch.engine.text.tokenizer import Tokenizer

TEXTS = [
    "the quick brown fox",
    "café über  two spaces",
    "unknown 🎉 emoji",
    "number 1234\nnew line",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 2's kind: BPE with byte fallback, no tokenizer.json."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    lines = [f"the quick brown fox number {i} jumps über the café {7 * i}" for i in range(1000)]
    (folder / "text.txt").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids_and_text_as_sentencepiece(folder: Path, text: str) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.encode(text)
    assert ids == [reference.bos_id(), *reference.encode(text)]
    assert tokenizer.decode(ids) == text
