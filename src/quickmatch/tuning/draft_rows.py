"""Turns what a draft job learns from into token ids.

Owns whose answers are kept: the target's own are learnt as they are, others' are prompts that the
target is to answer itself, because a head foretells the target. Prompts are rendered and tokenized
as in serving. Knows no store and loads no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quickmatch.core.call import Message
from quickmatch.engine.generation import eos_token_ids
from quickmatch.engine.text.chat_template import ChatTemplate
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.store.documents import Json
from quickmatch.tuning.chat_rows import ChatRow


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt; `output` is None where the target has yet to answer."""

    prompt: list[int]
    output: list[int] | None


class RowEncoder:
    """Encodes rows for one target."""

    def __init__(self, folder: Path, *, version_id: str, regenerate: bool | None) -> None:
        self._tokenizer = Tokenizer.from_folder(folder)
        self._template = ChatTemplate.from_folder(folder)
        self._eos_token_ids = eos_token_ids(folder)
        self._version_id = version_id  # of the target, as traces name it
        self._regenerate = regenerate

    def encode(self, row: ChatRow) -> Asked:
        """Return a row's prompt and, where it is the target's own, its answer."""
        answer = {k: v for k, v in row.messages[-1].items() if k != "weight"}
        is_rewritten = not row.has_answer or self.is_rewritten(row.metadata.get("model_version"))
        return self.chat(row.prompt, None if is_rewritten else answer, tools=row.tools)

    def is_rewritten(self, version_id: str | None) -> bool:
        """Whether the target shall answer anew what that version answered; None: nobody knows."""
        return version_id != self._version_id if self._regenerate is None else self._regenerate

    def chat(
        self,
        messages: Sequence[Message],
        answer: Message | None,
        *,
        tools: Sequence[Json] = (),
        variables: Mapping[str, Any] = MappingProxyType({}),
        is_cut: bool = False,
    ) -> Asked:
        """Encode a chat. answer: None if the target is to give it; is_cut: it has no end.

        variables: of the template (`chat_template_kwargs`).
        Raises InvalidRequest if the template refuses the messages.
        """
        text = self._template.render(messages, tools=tools, variables=variables)
        prompt = self._tokenizer.encode(text, add_special_tokens=False)
        if answer is None:
            return Asked(prompt, None)
        if is_cut:  # the template would end it
            return Asked(prompt, self._output(answer["content"]))
        whole = self._template.render(
            [*messages, answer], tools=tools, variables=variables, add_generation_prompt=False
        )
        if not whole.startswith(text):
            return Asked(prompt, None)  # the template writes answers otherwise than they come
        return Asked(prompt, self._output(whole[len(text) :]))

    def completion(self, prompt: str | list[int], answer: str | None, *, has_echo: bool) -> Asked:
        """Encode a text and what went on with it; has_echo: `answer` begins with the prompt."""
        ids = self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        if answer is None:
            return Asked(ids, None)
        if has_echo:
            echo = prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)
            answer = answer.removeprefix(echo)
        return Asked(ids, self._output(answer))

    def _output(self, text: str) -> list[int]:
        """Return the tokens of an answer up to the one that ends it."""
        token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        ends = [i for i, t in enumerate(token_ids) if t in self._eos_token_ids]
        return token_ids[: ends[0] + 1] if ends else token_ids
