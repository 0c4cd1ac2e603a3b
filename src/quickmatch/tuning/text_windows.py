"""Text as windows of token ids: what a model is calibrated with and measured on.

Owns the two kinds of file, chat JSONL and plain text, the chats of datasets and of recorded calls,
and the text that is there without any: the package's own module docstrings, English prose that no
published model was trained on much. Knows no model but its tokenizer and its chat template. Loads
no torch.

Invariant: the same file and limits give the same windows.
"""

import ast
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import quickmatch
from quickmatch.core.errors import DatasetError, InvalidRequest
from quickmatch.engine.text.chat_template import ChatTemplate
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.store.documents import Dataset, Trace
from quickmatch.store.protocol import Filter, Store
from quickmatch.tuning.chat_rows import ChatRow, read_chat_rows
from quickmatch.tuning.datasets import read_rows
from quickmatch.tuning.trace_rows import row_from_trace

WINDOW_TOKENS = 512


def read_windows(file: Path, folder: Path, *, max_tokens: int) -> list[list[int]]:
    """Return a file's text as token ids of the model in `folder`, max_tokens of them at most.

    A .jsonl file holds chats: each is a window of its own, as the model's template writes it, and
    they are taken in a shuffled order. Any other file is text, cut into windows of 512 tokens.
    Raises DatasetError naming the file, and the line where one is wrong.
    """
    if file.suffix == ".jsonl":
        return _shuffled(read_chat_rows(file, prompts_too=True), folder, max_tokens, str(file))
    ids = Tokenizer.from_folder(folder).encode(_read_text(file))
    return _enough(_up_to(_cut(ids), max_tokens), str(file))


def dataset_windows(dataset: Dataset, folder: Path, *, max_tokens: int) -> list[list[int]]:
    """Return a dataset's chats likewise. Raises DatasetError as reading one does."""
    return _shuffled(read_rows(dataset), folder, max_tokens, f"dataset {dataset.id!r}")


def trace_windows(store: Store, where: Filter, folder: Path, *, max_tokens: int) -> list[list[int]]:
    """Return the recorded chats that match, the newest first, each a window of its own.

    Raises DatasetError where there is none that was answered whole.
    """
    traces = store.find(Trace, where, descending=True)
    rows = (row for row in map(row_from_trace, traces) if row is not None)
    windows = _up_to(_chats(rows, folder), max_tokens)
    if not windows:
        raise DatasetError(
            "no recorded call that matches is a whole chat answer; see `quickmatch list traces`, "
            "and record calls by opting in"
        )
    return windows


def own_windows(folder: Path, *, max_tokens: int) -> list[list[int]]:
    """Return the package's module docstrings as token ids of the model in `folder`."""
    texts = []
    for path in sorted(Path(quickmatch.__file__).parent.rglob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        texts += [text] if text else []
    tokenizer = Tokenizer.from_folder(folder)
    return _up_to(_cut(tokenizer.encode("\n\n".join(texts))), max_tokens)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DatasetError(f"cannot read {file}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{file} is not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from error


def _shuffled(
    rows: Iterable[ChatRow], folder: Path, max_tokens: int, shown_as: str
) -> list[list[int]]:
    mixed = list(rows)
    random.Random(0).shuffle(mixed)
    return _enough(_up_to(_chats(mixed, folder), max_tokens), shown_as)


def _chats(rows: Iterable[ChatRow], folder: Path) -> Iterator[list[int]]:
    tokenizer, template = Tokenizer.from_folder(folder), ChatTemplate.from_folder(folder)
    return (_encode_chat(row, template, tokenizer)[:WINDOW_TOKENS] for row in rows)


def _enough(windows: list[list[int]], shown_as: str) -> list[list[int]]:
    if not any(len(ids) > 1 for ids in windows):
        raise DatasetError(f"{shown_as} holds too little text; give some pages of it")
    return windows


def _encode_chat(row: ChatRow, template: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
    messages = [{k: v for k, v in m.items() if k != "weight"} for m in row.messages]
    try:
        text = template.render(messages, tools=row.tools, add_generation_prompt=not row.has_answer)
    except InvalidRequest:  # a model without a template, or one that takes no such roles
        return tokenizer.encode("\n".join(str(m.get("content") or "") for m in messages))
    return tokenizer.encode(text, add_special_tokens=False)


def _cut(ids: list[int]) -> Iterator[list[int]]:
    return (ids[i : i + WINDOW_TOKENS] for i in range(0, len(ids), WINDOW_TOKENS))


def _up_to(windows: Iterable[list[int]], max_tokens: int) -> list[list[int]]:
    kept: list[list[int]] = []
    left = max_tokens
    for ids in windows:
        if left <= 0:
            break
        kept.append(ids[:left])
        left -= len(ids)
    return kept
