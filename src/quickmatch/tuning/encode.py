"""Turns chat rows into token ids and a loss weight a token, by the model's chat template.

Owns which tokens are learnt: those of assistant messages with weight 1, the end-of-turn token
included, because a model that never learnt it does not stop. Knows no training.

Two ways to find an assistant's text in a rendered row:
- `{% generation %}` markers in the template, where it has them;
- else prefixes: what rendering the messages up to an answer adds to rendering those before it
  (with the generation prompt) is the answer. Where a template renders earlier turns in another
  way once later ones follow (Qwen3 drops earlier thinking), this shows and the row is refused
  rather than learnt wrongly.

Invariant: the tokens are those of the whole text as rendered, as in serving; weights follow
from character offsets and never change the tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from quickmatch.core.errors import ConfigError, DatasetError
from quickmatch.tuning.chat_rows import ChatRow

Span = tuple[int, int]  # of characters


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row: as many weights as tokens; 0 is not learnt."""

    token_ids: list[int]
    weights: list[float]

    @property
    def num_learnt(self) -> int:
        """Tokens with a weight. The first token is never predicted, so it does not count."""
        return sum(1 for w in self.weights[1:] if w)


@dataclass(slots=True)
class EncodedSet:
    """The rows that fit, and the row numbers (from 1) of those that do not."""

    rows: list[Encoded] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)
    longest_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """All tokens, learnt or not."""
        return sum(len(r.token_ids) for r in self.rows)

    def describe(self, max_length: int) -> str:
        """Say in one line what was kept and what was left out."""
        learnt = sum(r.num_learnt for r in self.rows)
        line = f"{len(self.rows)} rows, {self.num_tokens} tokens, {learnt} of them learnt"
        if self.too_long:
            line += (
                f"; {len(self.too_long)} rows left out, longer than {max_length} tokens (the "
                f"longest has {self.longest_tokens}), the first is row {self.too_long[0]}"
            )
        return line


def encode_rows(
    rows: Iterable[ChatRow], tokenizer: Any, max_length: int, *, name: str
) -> EncodedSet:
    """Encode a dataset; rows above max_length tokens are left out and counted.

    They are not cut, because a cut answer teaches the model to break off.
    Raises DatasetError if nothing is left, ConfigError if the tokenizer has no chat template.
    """
    template = chat_template(tokenizer)
    encoded = EncodedSet()
    for number, row in enumerate(rows, start=1):
        one = encode_row(row, tokenizer, template, where=f"dataset {name} row {number}")
        encoded.longest_tokens = max(encoded.longest_tokens, len(one.token_ids))
        if len(one.token_ids) > max_length:
            encoded.too_long.append(number)
        else:
            encoded.rows.append(one)
    if not encoded.rows:
        raise DatasetError(
            f"dataset {name}: none of its {len(encoded.too_long)} rows fits {max_length} tokens, "
            f"the longest has {encoded.longest_tokens}; raise max_context_length or shorten them"
        )
    return encoded


def chat_template(tokenizer: Any) -> str:
    """Return the tokenizer's template. Raises ConfigError if it has none that we can use."""
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "the base model's tokenizer has no chat template; add one to its "
            "tokenizer_config.json (chat_template), or choose a chat model"
        )
    if not tokenizer.is_fast:
        raise ConfigError("the base model's tokenizer has no tokenizer.json; convert it to one")
    return str(tokenizer.get_chat_template())


def encode_row(row: ChatRow, tokenizer: Any, template: str, *, where: str) -> Encoded:
    """Render, tokenize and weigh one row. Raises DatasetError "WHERE: reason"."""
    try:
        text, spans = _render(row, tokenizer, template, where)
    except jinja2.TemplateError as error:
        raise DatasetError(f"{where}: the chat template refuses it: {error}") from error
    answers = [m for m in row.messages if m["role"] == "assistant"]
    learnt = [
        _with_turn_end(text, span, tokenizer)
        for span, message in zip(spans, answers, strict=True)
        if span is not None and message.get("weight", 1) == 1
    ]
    output = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    weights = [
        row.weight if any(start <= a and a < end for start, end in learnt) and a < b else 0.0
        for a, b in output["offset_mapping"]
    ]
    return Encoded(token_ids=list(output["input_ids"]), weights=weights)


def _render(
    row: ChatRow, tokenizer: Any, template: str, where: str
) -> tuple[str, list[Span | None]]:
    """Return the row's text and each assistant message's span (None: unknown, not learnt)."""
    messages = [{k: v for k, v in m.items() if k != "weight"} for m in row.messages]
    options: dict[str, Any] = {"tools": list(row.tools) or None, **tokenizer.special_tokens_map}
    if "generation" in template and "endgeneration" in template:
        texts, marked = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **options,
        )
        return texts[0], _match(marked[0], row, where)

    def render(upto: int, prompt: bool) -> str:
        texts, _ = render_jinja_template(
            conversations=[messages[:upto]],
            chat_template=template,
            add_generation_prompt=prompt,
            **options,
        )
        return str(texts[0])

    whole = render(len(messages), False)
    spans: list[Span | None] = []
    for index, message in enumerate(row.messages):
        if message["role"] == "assistant":
            before, after = render(index, True), render(index + 1, False)
            holds = whole.startswith(after) and after.startswith(before)
            if not holds and message.get("weight", 1) == 1:
                raise DatasetError(
                    f"{where}: the chat template renders message {index + 1} differently once "
                    "later ones follow; give it weight 0, or add generation markers to the template"
                )
            spans.append((len(before), len(after)) if holds else None)
    return whole, spans


def _match(marked: Sequence[Sequence[int]], row: ChatRow, where: str) -> list[Span | None]:
    num_answers = sum(1 for m in row.messages if m["role"] == "assistant")
    if len(marked) != num_answers:
        raise DatasetError(
            f"{where}: the chat template marks {len(marked)} generations for {num_answers} "
            "assistant messages; mark each one once"
        )
    return [(start, end) for start, end in marked]


def _with_turn_end(text: str, span: Span, tokenizer: Any) -> Span:
    """Let a span end right behind its end-of-turn token.

    Prefixes run on to the line break after it, which no one generates; markers may stop short.
    """
    start, end = span
    stripped = text[start:end].rstrip()
    if any(stripped.endswith(token) for token in tokenizer.all_special_tokens):
        return start, start + len(stripped)
    eos = tokenizer.eos_token
    return start, end + len(eos) if eos and text.startswith(eos, end) else end
