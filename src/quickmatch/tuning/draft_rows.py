"""Turns what a draft job learns from into token ids: a dataset's rows, a file's, or traces.

Owns which rows are fit, and whose answers they hold: the target's own are learnt as they are,
others' are prompts that the target is to answer itself, because a head foretells the target.
Prompts are rendered and tokenized as in serving. Loads no torch.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quickmatch.core.errors import DatasetError, InvalidRequest
from quickmatch.engine.generation import eos_token_ids
from quickmatch.engine.text.chat_template import ChatTemplate
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.store.documents import Dataset, Job
from quickmatch.store.protocol import Store, require
from quickmatch.tuning.chat_rows import ChatRow, read_chat_rows
from quickmatch.tuning.datasets import read_rows
from quickmatch.tuning.draft_data import ROWS
from quickmatch.tuning.trace_rows import TraceRows

logger = logging.getLogger(__name__)
MIN_OUTPUT_TOKENS = 2  # the first is the target's, a draft begins behind it


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt; `output` is None where the target has yet to answer."""

    prompt: list[int]
    output: list[int] | None


def read_job_rows(store: Store, job: Job) -> Iterator[ChatRow]:
    """Yield the rows that a job learns from; traces oldest first. Raises DatasetError."""
    if job.trace_filter is not None:
        rows = TraceRows(store, job.trace_filter)
        yield from rows
        logger.info("traces: %s", rows.summary())
    elif job.file:
        path = Path(job.data_path) / ROWS
        yield from read_chat_rows(path, shown_as=job.file, prompts_too=True)
    else:
        yield from read_rows(require(store, Dataset, job.dataset))


class RowEncoder:
    """Encodes rows for one target."""

    def __init__(self, folder: Path, *, version_id: str, regenerate: bool | None) -> None:
        self._tokenizer = Tokenizer.from_folder(folder)
        self._template = ChatTemplate.from_folder(folder)
        self._eos_token_ids = eos_token_ids(folder)
        self._version_id = version_id  # of the target, as traces name it
        self._regenerate = regenerate

    def encode(self, rows: Iterable[ChatRow], *, name: str) -> list[Asked]:
        """Encode all rows. Raises DatasetError "NAME row N: …" if the template refuses one."""
        asked = []
        for number, row in enumerate(rows, start=1):
            try:
                asked.append(self._encode(row))
            except InvalidRequest as error:
                raise DatasetError(f"{name} row {number}: {error.message}") from error
        return asked

    def _encode(self, row: ChatRow) -> Asked:
        text = self._template.render(row.prompt, tools=row.tools)
        prompt = self._tokenizer.encode(text, add_special_tokens=False)
        if not row.has_answer or self._is_rewritten(row):
            return Asked(prompt, None)
        messages = [*row.prompt, {k: v for k, v in row.messages[-1].items() if k != "weight"}]
        whole = self._template.render(messages, tools=row.tools, add_generation_prompt=False)
        if not whole.startswith(text):
            return Asked(prompt, None)  # the template writes answers otherwise than they come
        return Asked(prompt, self._output(whole[len(text) :]))

    def _is_rewritten(self, row: ChatRow) -> bool:
        """Whether the target shall answer anew."""
        if self._regenerate is not None:
            return self._regenerate
        return row.metadata.get("model_version") != self._version_id

    def _output(self, text: str) -> list[int]:
        """Return the tokens of an answer up to the one that ends it."""
        token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        ends = [i for i, t in enumerate(token_ids) if t in self._eos_token_ids]
        return token_ids[: ends[0] + 1] if ends else token_ids
