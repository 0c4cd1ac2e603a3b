"""Turns recorded calls into dataset rows.

Owns which traces are fit to learn from: chat calls that succeeded, ended by themselves (not cut
by a length limit), and hold an answer. Knows no files.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from quickmatch.core.errors import DatasetError
from quickmatch.store.documents import Trace
from quickmatch.store.protocol import Filter, Store
from quickmatch.tuning.chat_rows import MESSAGE_KEYS, ChatRow, row_from_json

_WHOLE = ("stop", "tool_calls")  # finish reasons of answers that are complete


class TraceRows:
    """The rows of all traces that match, oldest first, each once. Iterate once, then ask counts."""

    def __init__(self, store: Store, where: Filter, limit: int | None = None) -> None:
        self._traces = store.find(Trace, where)
        self._limit = limit
        self.num_traces = 0
        self.num_rows = 0
        self.num_duplicates = 0
        self.num_unfit = 0  # failed, cut short, empty, or no chat

    def __iter__(self) -> Iterator[ChatRow]:
        """Yield rows. Raises DatasetError if there is none."""
        seen: set[bytes] = set()
        for trace in self._traces:
            self.num_traces += 1
            row = row_from_trace(trace)
            if row is None:
                self.num_unfit += 1
                continue
            key = hashlib.sha256(json.dumps([row.messages, row.tools]).encode()).digest()
            if key in seen:
                self.num_duplicates += 1
                continue
            seen.add(key)
            self.num_rows += 1
            yield row
            if self.num_rows == self._limit:
                break
        if self.num_rows == 0:
            raise DatasetError(
                f"no dataset made: {self.num_traces} traces match the filter, none is a whole "
                "chat answer; see `quickmatch list traces`, and record calls by opting in"
            )

    def summary(self) -> str:
        """Say in one line what became of the traces."""
        return (
            f"{self.num_rows} rows from {self.num_traces} traces "
            f"({self.num_duplicates} duplicates, {self.num_unfit} unfit left out)"
        )


def row_from_trace(trace: Trace) -> ChatRow | None:
    """Return the row of a trace, or None if there is nothing whole to learn in it."""
    if trace.endpoint != "chat" or trace.status != 200 or trace.error or not trace.response:
        return None
    choices = trace.response.get("choices") or []
    if not choices or choices[0].get("finish_reason") not in _WHOLE:
        return None
    messages = [*trace.request.get("messages", []), choices[0].get("message") or {}]
    row: dict[str, Any] = {
        "messages": [_message(m) for m in messages if isinstance(m, dict)],
        "metadata": {
            "trace_id": trace.trace_id,
            "model_version": trace.model_version,
            "tags": dict(trace.tags),
        },
    }
    if trace.request.get("tools"):
        row["tools"] = trace.request["tools"]
    try:
        return row_from_json(row, shown_as=f"trace {trace.id}")
    except DatasetError:
        return None


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Keep what a row may hold; what a client or a caller's weight added is not learnt."""
    kept = {k: v for k, v in message.items() if k in MESSAGE_KEYS and k != "weight" and v}
    if kept.get("role") == "developer":  # OpenAI's newer name of the system role
        kept["role"] = "system"
    return kept
