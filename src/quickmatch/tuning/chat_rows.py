"""One line of a chat dataset: what is allowed, and the reason why a line is refused.

Owns the row format, OpenAI's and Fireworks' chat JSONL:

    {"messages": [{"role": "user", "content": "…"},
                  {"role": "assistant", "content": "…", "weight": 1}],
     "tools": […], "weight": 1.0, "metadata": {"tags": {…}}}

A message's `weight` is 0 or 1 and says whether to learn it; a row's `weight` scales its loss.
`metadata` is carried along and never shown to the model. Knows no tokens and no store.

Invariant: a `ChatRow` that exists has something to learn, and its last message is the assistant's.
"""

import difflib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quickmatch.core.errors import DatasetError

Json = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")
_ROW_KEYS = ("messages", "tools", "weight", "metadata")
MESSAGE_KEYS = (
    "role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "weight",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A valid row. Messages keep OpenAI's keys; contents are plain texts."""

    messages: tuple[Json, ...]
    tools: tuple[Json, ...] = ()
    weight: float = 1.0
    metadata: Json = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the row as one line without its end; equal rows give equal lines."""
        row: Json = {"messages": list(self.messages)}
        if self.tools:
            row["tools"] = list(self.tools)
        if self.weight != 1.0:
            row["weight"] = self.weight
        if self.metadata:
            row["metadata"] = self.metadata
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        if any("\ud800" <= c <= "\udfff" for c in line):  # metadata may hold what UTF-8 cannot
            return json.dumps(row, separators=(",", ":"))
        return line

    @property
    def prompt(self) -> list[Json]:
        """The messages up to the last answer, as they are sent to a model."""
        asked = self.messages[:-1] if self.has_answer else self.messages
        return [{k: v for k, v in m.items() if k != "weight"} for m in asked]

    @property
    def has_answer(self) -> bool:
        """Whether the last message is an answer; otherwise the row is a prompt alone."""
        return bool(self.messages[-1]["role"] == "assistant")

    @property
    def answer(self) -> str:
        """The last answer's text."""
        return self.messages[-1].get("content") or ""


class _WrongError(Exception):
    """Why a row is refused; the reader adds file and line."""


def read_chat_rows(
    path: Path, *, shown_as: str = "", prompts_too: bool = False
) -> Iterator[ChatRow]:
    """Yield the rows of a JSONL file; blank lines are skipped.

    prompts_too: a row may also end before the answer, for a model to write it.
    Raises DatasetError "FILE line N: reason" at the first wrong line, or if there is no row.
    """
    name, num_rows = shown_as or str(path), 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield parse_line(line, prompts_too=prompts_too)
                except _WrongError as wrong:
                    raise DatasetError(f"{name} line {number}: {wrong}") from None
                num_rows += 1
    except OSError as error:
        raise DatasetError(f"cannot read dataset file {name}: {error.strerror}") from error
    if num_rows == 0:
        raise DatasetError(f"{name} holds no rows; write one JSON object a line")


def parse_line(line: bytes, *, prompts_too: bool = False) -> ChatRow:
    """Return the row of one line of a file."""
    try:
        text = line.decode("utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise _WrongError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _WrongError(f"not JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise _WrongError("nested too deep to be read as JSON") from None
    return _row(value, prompts_too)


def row_from_json(value: Any, *, shown_as: str) -> ChatRow:
    """Return the row of an object that is in memory. Raises DatasetError "SHOWN_AS: reason"."""
    try:
        return _row(value)
    except _WrongError as wrong:
        raise DatasetError(f"{shown_as}: {wrong}") from None


def _row(value: Any, prompts_too: bool = False) -> ChatRow:
    if not isinstance(value, dict):
        raise _WrongError(f"a row is a JSON object, this is {_kind(value)}")
    _check_keys(value, _ROW_KEYS, "row", "; put your own fields into 'metadata'")
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _WrongError(f"'messages' must be a list of messages, not {_kind(messages)}")
    parsed = tuple(_message(m, n) for n, m in enumerate(messages, start=1))
    if prompts_too and parsed[-1]["role"] in ("user", "tool"):
        return ChatRow(
            parsed, _tools(value.get("tools")), metadata=_metadata(value.get("metadata"))
        )
    if parsed[-1]["role"] != "assistant":
        raise _WrongError(
            f"the last message's role is {parsed[-1]['role']!r}; it must be 'assistant', "
            "the answer to learn"
        )
    if not any(m["role"] == "assistant" and m.get("weight", 1) == 1 for m in parsed):
        raise _WrongError("no assistant message has weight 1, so there is nothing to learn")
    return ChatRow(
        messages=parsed,
        tools=_tools(value.get("tools")),
        weight=_row_weight(value.get("weight", 1.0)),
        metadata=_metadata(value.get("metadata")),
    )


def _message(value: Any, number: int) -> Json:
    where = f"message {number}"
    if not isinstance(value, dict):
        raise _WrongError(f"{where} must be an object, not {_kind(value)}")
    _check_keys(value, MESSAGE_KEYS, where, "")
    role = value.get("role")
    if role not in ROLES:
        raise _WrongError(f"{where} has role {role!r}; allowed: {', '.join(ROLES)}")
    weight = value.get("weight", 1)
    if "weight" in value and role != "assistant":
        raise _WrongError(f"{where} has a weight, but only assistant messages may have one")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise _WrongError(f"{where} has weight {weight!r}; allowed: 0 (do not learn) or 1")
    content = _content(value.get("content"), where)
    calls = _tool_calls(value.get("tool_calls"), role, where)
    if not content and not calls and role != "tool":
        raise _WrongError(f"{where} ({role}) has no content")
    return {k: v for k, v in value.items() if v is not None and k != "content"} | {
        "content": content
    }


def _content(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list):  # OpenAI's content parts
        texts = [p.get("text") if isinstance(p, dict) else None for p in value]
        if not all(isinstance(t, str) for t in texts):
            raise _WrongError(f"{where} has a content part that is no text; only text is learnt")
        value = "".join(t for t in texts if t)
    if not isinstance(value, str):
        raise _WrongError(f"{where} has content of type {_kind(value)}; it must be a text")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise _WrongError(f"{where} holds half of a surrogate pair; it is no valid Unicode text")
    return value if value.strip() else ""


def _tool_calls(value: Any, role: str, where: str) -> list[Json]:
    if value is None:
        return []
    if role != "assistant":
        raise _WrongError(f"{where} has tool_calls, but its role is {role!r}, not 'assistant'")
    named = isinstance(value, list) and all(
        isinstance(call, dict)
        and isinstance(call.get("function"), dict)
        and isinstance(call["function"].get("name"), str)
        for call in value
    )
    if not named:
        raise _WrongError(
            f"{where} has wrong tool_calls; each is "
            '{"type": "function", "function": {"name": …, "arguments": …}}'
        )
    return list(value)


def _tools(value: Any) -> tuple[Json, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(t, dict) for t in value):
        raise _WrongError("'tools' must be a list of objects")
    return tuple(value)


def _row_weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _WrongError(f"the row's weight is {value!r}; it must be a number above 0")
    if not math.isfinite(value) or value <= 0:
        raise _WrongError(f"the row's weight is {value!r}; it must be above 0 and finite")
    return float(value)


def _metadata(value: Any) -> Json:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _WrongError(f"'metadata' must be an object, not {_kind(value)}")
    return value


def _check_keys(value: Json, known: tuple[str, ...], where: str, remedy: str) -> None:
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise _WrongError(f"{where} has an unknown field {key!r}{hint}{remedy}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if value is None:
        return "missing"
    return names.get(type(value), "a number") if value != [] else "an empty list"
