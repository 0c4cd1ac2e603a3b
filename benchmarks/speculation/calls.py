"""Calls as contenders get them: token ids in, a limit, and where a caller has one a prediction.

Owns the way from items to tokens (the target's own chat template), what counts as an answer's
tokens, and what counts as a loop.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import AutoTokenizer

from benchmarks.speculation.targets import BASE
from benchmarks.speculation.workloads import MAX_TOKENS, PROSE, Item

END_IDS = (0, 2)  # <|endoftext|>, <|im_end|>
_NGRAM = 4
_MIN_LOOP_TOKENS = 24
_LOOP_SHARE = 0.6  # of distinct n-grams; below it the text goes in circles


@dataclass(frozen=True, slots=True)
class Call:
    """One call."""

    workload: str
    prompt: tuple[int, ...]
    max_tokens: int
    prediction: tuple[int, ...] = ()

    def as_json(self, *, max_tokens: int | None = None) -> dict[str, Any]:
        """Return what a worker reads."""
        return asdict(self) | {"max_tokens": max_tokens or self.max_tokens}

    def without_prediction(self) -> "Call":
        """Return the same call of a caller who expects nothing."""
        return Call(self.workload, self.prompt, self.max_tokens)


class Encoder:
    """Turns items into calls."""

    def __init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(BASE)

    def calls(self, items: Iterable[Item]) -> list[Call]:
        """Encode chat items."""
        return [self._call(item) for item in items]

    def raw(self, texts: Iterable[str]) -> list[Call]:
        """Encode openings of prose: no chat format, the text goes on by itself."""
        limit = MAX_TOKENS[PROSE]
        return [Call(PROSE, tuple(self.ids(text)), limit) for text in texts]

    def _call(self, item: Item) -> Call:
        text = self._tokenizer.apply_chat_template(
            list(item.messages), add_generation_prompt=True, tokenize=False
        )
        prediction = tuple(self.ids(item.prediction)) if item.prediction else ()
        return Call(item.workload, tuple(self.ids(text)), item.max_tokens, prediction)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def answer_of(token_ids: Sequence[int]) -> list[int]:
    """Return the answer's own tokens: what stands before an end token, kept by some engines."""
    end = next((i for i, token_id in enumerate(token_ids) if token_id in END_IDS), len(token_ids))
    return list(token_ids[:end])


def loops(token_ids: Sequence[int]) -> bool:
    """Whether a text goes in circles: too few of its runs of four tokens are distinct."""
    ngrams = [tuple(token_ids[i : i + _NGRAM]) for i in range(len(token_ids) - _NGRAM + 1)]
    if len(token_ids) < _MIN_LOOP_TOKENS:
        return False
    return len(set(ngrams)) < _LOOP_SHARE * len(ngrams)
