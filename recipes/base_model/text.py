"""Natural text: reads the files named on the command line and holds a slice of each out.

A source is one file: `.jsonl` or `.jsonl.gz` with {"text"} or {"prompt", "completion"} records, or
a plain `.txt` file, cut at blank lines. Its name is the file name without endings. Every
HELD_OUT_EVERY-th record is held out, so the split depends on the file alone and never on a seed:
perplexities of two runs compare.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HELD_OUT_EVERY = 50
MAX_HELD_OUT_RECORDS = 60
MIN_PARAGRAPHS_CHARS = 4000
ENCODE_BATCH = 512


@dataclass(frozen=True)
class Source:
    """One tokenized file. Records are joined by the end-of-text token."""

    name: str
    train: np.ndarray  # uint16 [num_train_tokens]
    held_out: np.ndarray  # uint16 [num_held_out_tokens]


def source_name(path: Path) -> str:
    """`docs.jsonl.gz` -> `docs`."""
    return path.name.split(".")[0]


def read_records(path: Path) -> Iterator[str]:
    """The texts of one file, in file order."""
    opening = gzip.open if path.suffix == ".gz" else open
    with opening(path, "rt", encoding="utf-8") as lines:
        if ".jsonl" not in path.name:
            yield from _paragraph_groups(lines.read())
            return
        for line in lines:
            yield _record_text(json.loads(line))


def _record_text(record: dict[str, str]) -> str:
    if "text" in record:
        return record["text"]
    return record["prompt"] + "\n" + record["completion"]


def _paragraph_groups(text: str) -> Iterator[str]:
    group = ""
    for paragraph in text.split("\n\n"):
        group += paragraph + "\n\n"
        if len(group) >= MIN_PARAGRAPHS_CHARS:
            yield group.strip()
            group = ""
    if group.strip():
        yield group.strip()


def load_source(path: Path, tokenizer: Tokenizer, max_train_tokens: int) -> Source:
    """Tokenize one file; training stops at `max_train_tokens`, the held-out slice does not."""
    end = tokenizer.token_to_id("<|endoftext|>")
    train: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    num_train_tokens = 0
    for first, texts in _batches(read_records(path)):
        for offset, encoding in enumerate(tokenizer.encode_batch_fast(texts)):
            ids = np.array([*encoding.ids, end], dtype=np.uint16)
            if (first + offset) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1:
                if len(held_out) < MAX_HELD_OUT_RECORDS:
                    held_out.append(ids)
            elif num_train_tokens < max_train_tokens:
                train.append(ids)
                num_train_tokens += len(ids)
    none = np.zeros(0, dtype=np.uint16)
    return Source(
        source_name(path),
        np.concatenate(train) if train else none,
        np.concatenate(held_out) if held_out else none,
    )


def _batches(texts: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    first, batch = 0, []
    for text in texts:
        batch.append(text)
        if len(batch) == ENCODE_BATCH:
            yield first, batch
            first, batch = first + len(batch), []
    if batch:
        yield first, batch


def load_sources(
    paths: list[Path], tokenizer: Tokenizer, cache_dir: Path, max_train_tokens: int
) -> list[Source]:
    """`load_source` for each file, kept as .npz in `cache_dir` between runs."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    sources = []
    for path in paths:
        name = source_name(path)
        cached = cache_dir / f"{name}-{max_train_tokens}.npz"
        if not cached.exists():
            source = load_source(path, tokenizer, max_train_tokens)
            np.savez(cached, train=source.train, held_out=source.held_out)
        arrays = np.load(cached)
        sources.append(Source(name, arrays["train"], arrays["held_out"]))
    return sources
