"""Files as windows of token ids: both kinds, their limits, and what is wrong with them."""

import json
from pathlib import Path

import pytest

from quickmatch.core.errors import DatasetError
from quickmatch.core.shipped import SHIPPED_MODEL, model_source
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.tuning.text_windows import own_windows, read_windows

FOLDER = Path(model_source(SHIPPED_MODEL))
TOKENIZER = Tokenizer.from_folder(FOLDER)


def chats(path: Path, *texts: str) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]}
        for text in texts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_text_is_cut_into_windows_and_kept_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a plain sentence. " * 400, encoding="utf-8")
    ids = TOKENIZER.encode(file.read_text(encoding="utf-8"))
    windows = read_windows(file, FOLDER, max_tokens=700)
    assert [len(window) for window in windows] == [512, 188]
    assert [i for window in windows for i in window] == ids[:700]


def test_chats_are_rendered_one_a_window(tmp_path: Path) -> None:
    file = chats(tmp_path / "chats.jsonl", "Is it so?", "word " * 2000)
    windows = read_windows(file, FOLDER, max_tokens=5000)
    assert sorted(len(window) == 512 for window in windows) == [False, True]
    short = TOKENIZER.decode(min(windows, key=len), skip_special_tokens=False)
    assert short.startswith("<|im_start|>user\nIs it so?<|im_end|>")
    assert short.rstrip().endswith("Yes.<|im_end|>")


def test_a_prompt_alone_ends_where_the_answer_begins(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "Hm?"}]}', encoding="utf-8")
    (window,) = read_windows(file, FOLDER, max_tokens=100)
    assert TOKENIZER.decode(window, skip_special_tokens=False).endswith("<|im_start|>assistant\n")


def test_wrong_files_are_named(tmp_path: Path) -> None:
    empty, broken, binary = (tmp_path / name for name in ("e.txt", "b.jsonl", "x.txt"))
    empty.write_text("")
    broken.write_text('{"messages": []}\n')
    binary.write_bytes(b"\xff\xfe")
    for file, message in (
        (tmp_path / "none.txt", r"cannot read .*none\.txt: No such file"),
        (empty, r"e\.txt holds too little text"),
        (broken, r"b\.jsonl line 1: 'messages' must be"),
        (binary, r"x\.txt is not UTF-8 at byte 0"),
    ):
        with pytest.raises(DatasetError, match=message):
            read_windows(file, FOLDER, max_tokens=100)


def test_our_own_text_is_there_without_a_file() -> None:
    windows = own_windows(FOLDER, max_tokens=1000)
    assert [len(window) for window in windows] == [512, 488]
    assert own_windows(FOLDER, max_tokens=1000) == windows
