"""Where a draft job's sequences come from, and which of them it takes: the newest that fit.

Rows and recorded calls come newest first and one by one, so that who has enough of them reads no
further, however long the history. Loads no torch.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from quickmatch.core.errors import DatasetError, InvalidRequest
from quickmatch.store.documents import Dataset, Job, Trace
from quickmatch.store.protocol import Store, require
from quickmatch.tuning.chat_rows import ChatRow, read_chat_rows
from quickmatch.tuning.datasets import read_rows
from quickmatch.tuning.draft_data import MIN_OUTPUT_TOKENS, ROWS, source_of
from quickmatch.tuning.draft_rows import Asked, RowEncoder
from quickmatch.tuning.draft_traces import asked_of


@dataclass(slots=True)
class Chosen:
    """What is learnt from, oldest first, and what became of the rest that was read."""

    asked: list[Asked] = field(default_factory=list)
    num_read: int = 0
    num_unfit: int = 0  # recorded calls without anything to learn
    num_long: int = 0
    num_equal: int = 0  # to a newer one: or one might be learnt from, the other measured on

    def summary(self) -> str:
        """Say it in one line."""
        reasons = (
            (self.num_unfit, "without an answer to learn from"),
            (self.num_long, "longer than the context"),
            (self.num_equal, "equal to newer ones"),
        )
        left = [f"{number} {reason}" for number, reason in reasons if number]
        rest = f", left out {', '.join(left)}" if left else ""
        return f"{len(self.asked)} taken of the newest {self.num_read} rows{rest}"


def choose(
    newest_first: Iterable[Asked | None], *, max_length: int, max_sequences: int | None
) -> Chosen:
    """Take the newest that fit, and read no further than that.

    max_length: tokens of prompt and answer; what is longer is left out, not cut.
    """
    chosen, seen = Chosen(), set[bytes]()
    for asked in newest_first:
        chosen.num_read += 1
        if asked is None or (asked.output is not None and len(asked.output) < MIN_OUTPUT_TOKENS):
            chosen.num_unfit += 1
        elif _length(asked) > max_length:
            chosen.num_long += 1
        elif (digest := _digest(asked)) in seen:
            chosen.num_equal += 1
        else:
            seen.add(digest)
            chosen.asked.append(asked)
            if len(chosen.asked) == max_sequences:
                break
    chosen.asked.reverse()
    return chosen


def newest_first(store: Store, job: Job, encoder: RowEncoder) -> Iterator[Asked | None]:
    """Yield what a job may learn from; of a dataset or a file, the last row first.

    None stands for a recorded call that nothing can be learnt from: traffic is as it comes. A row
    of a dataset or a file that the template refuses is the user's to mend: it raises DatasetError
    "NAME row N: …".
    """
    if job.trace_filter is not None:
        for trace in store.find(Trace, job.trace_filter, descending=True):
            yield asked_of(trace, encoder)
        return
    rows = _rows(store, job)
    for number in range(len(rows), 0, -1):
        try:
            yield encoder.encode(rows[number - 1])
        except InvalidRequest as error:
            raise DatasetError(f"{source_of(job)} row {number}: {error.message}") from error


def _rows(store: Store, job: Job) -> list[ChatRow]:
    if job.file:
        path = Path(job.data_path) / ROWS
        return list(read_chat_rows(path, shown_as=job.file, prompts_too=True))
    return read_rows(require(store, Dataset, job.dataset))


def _length(asked: Asked) -> int:
    return len(asked.prompt) + (MIN_OUTPUT_TOKENS if asked.output is None else len(asked.output))


def _digest(asked: Asked) -> bytes:
    output = [-1] if asked.output is None else asked.output
    parts = (array("q", part).tobytes() for part in (asked.prompt, [len(asked.prompt)], output))
    return hashlib.sha256(b"".join(parts)).digest()
