import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from quickmatch.core.errors import InvalidRequest, ModelLoadError
from quickmatch.engine.text.tokenizer import Tokenizer
from tests.unit.engine.text.tokenizers_for_tests import (
    random_text,
    train_byte_level,
    write_folder,
)


@pytest.mark.parametrize("kind", ["byte_level_folder", "sentencepiece_folder"])
def test_agrees_with_transformers(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(str(folder))
    rng = random.Random(1)
    texts = ["", " ", "<|im_start|>user\nhi<|im_end|>", "<s>a</s>"]
    texts += [random_text(rng, 40) for _ in range(100)]
    for text in texts:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special)
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                    ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
                )
    assert ours.eos_token == theirs.eos_token
    assert ours.bos_token == theirs.bos_token
    assert set(theirs.all_special_ids) <= ours.special_ids


def test_the_post_processor_decides_on_bos(byte_level: Tokenizer) -> None:
    assert byte_level.encode("hi")[0] == byte_level.token_id("<|bos|>")
    assert byte_level.encode("hi", add_special_tokens=False)[0] != byte_level.token_id("<|bos|>")


def test_kinds_of_vocabulary(byte_level: Tokenizer, sentencepiece: Tokenizer) -> None:
    assert byte_level.is_byte_level
    assert not sentencepiece.is_byte_level


def test_token_bytes_join_to_the_text(byte_level: Tokenizer) -> None:
    rng = random.Random(2)
    for _ in range(50):
        text = random_text(rng, 30) + " two words <think>"
        ids = byte_level.encode(text, add_special_tokens=False)
        assert b"".join(byte_level.token_bytes(i) for i in ids).decode() == text


def test_token_text(byte_level: Tokenizer, sentencepiece: Tokenizer) -> None:
    first = byte_level.encode("🙂", add_special_tokens=False)[0]
    assert byte_level.token_text(first) == "\ufffd"
    quick = sentencepiece.encode("a quick", add_special_tokens=False)[1]
    assert sentencepiece.token_text(quick).startswith(" q")
    newline = sentencepiece.token_id("<0x0A>")
    assert newline is not None
    assert sentencepiece.token_text(newline) == "\n"
    assert sentencepiece.token_text(10**6) == ""


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("quick", add_special_tokens=False)
    assert tokenizer.decode([*ids, tokenizer.vocab_size, 10**6]) == "quick"


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        tokenizer.encode("hi \ud83d")


def test_adds_the_tokens_that_only_the_configuration_knows(tmp_path: Path) -> None:
    backend = train_byte_level()
    size = backend.get_vocab_size()
    folder = write_folder(
        tmp_path,
        backend,
        eos_token="<|end|>",
        added_tokens_decoder={
            str(size): {"content": "<|end|>", "special": True},
            str(size + 1): {"content": "<tool>", "special": False},
        },
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("<|end|><tool>", add_special_tokens=False) == [size, size + 1]
    assert size in tokenizer.special_ids
    assert size + 1 not in tokenizer.special_ids
    theirs = AutoTokenizer.from_pretrained(str(folder))
    assert theirs.encode("<|end|><tool>", add_special_tokens=False) == [size, size + 1]


def test_a_named_token_is_special_even_if_the_tokenizer_does_not_say_so(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train_byte_level(), eos_token="<think>")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.token_id("<think>") in tokenizer.special_ids
    assert AutoTokenizer.from_pretrained(str(folder)).decode(
        tokenizer.encode("a<think>"), skip_special_tokens=True
    ) == tokenizer.decode(tokenizer.encode("a<think>"))


def test_truncation_of_the_file_is_ignored(tmp_path: Path) -> None:
    backend = train_byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, backend))
    expected = train_byte_level().encode("the quick brown fox").ids
    assert tokenizer.encode("the quick brown fox") == expected


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has no tokenizer\.json.*copy"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_file(tmp_path: Path, name: str, content: str) -> None:
    write_folder(tmp_path, train_byte_level())
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelLoadError, match=name):
        Tokenizer.from_folder(tmp_path)


def test_older_files_are_converted_by_transformers(tmp_path: Path) -> None:
    state = json.loads(train_byte_level().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(state["vocab"]))
    merges = [" ".join(pair) for pair in state["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>"}
    config |= {"bos_token": "<|bos|>", "unk_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path)
    text = "the quick brown 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_older_files_that_cannot_be_converted(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    config = {"tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelLoadError, match=r"no tokenizer\.json, and .*pip install sentencepiece"
    ):
        Tokenizer.from_folder(tmp_path)
