"""Between a call and token ids, for the embedded backend: template, tokenizer, limits.

Owns one model's text side. Runs in the gateway's process, so long texts are tokenized in a
thread and the event loop goes on. Knows no engine process.
Invariant: a prompt that passes `Prompt.check_fits` has room for what the caller asked for.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quickmatch.core.call import Call
from quickmatch.core.errors import ContextTooLong, InvalidRequest
from quickmatch.core.grammar import Grammar
from quickmatch.engine.speculation.suffix_index import PROMPT_TAIL
from quickmatch.engine.text.chat_template import ChatTemplate
from quickmatch.engine.text.stream import TextStream
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.fleet.backend import PastAnswer

INLINE_CHARS = 8192  # longer texts are tokenized in a thread
_TAIL_CHARS = 512  # many more than PROMPT_TAIL tokens take, but for the oddest text


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads, and the text that is given back before the answer ("" mostly)."""

    token_ids: list[int]
    echo: str = ""
    prediction_token_ids: list[int] = field(default_factory=list)

    def check_fits(self, call: Call, max_model_len: int) -> None:
        """Refuse what cannot be served. Token ids and the KV memory the engine checks itself.

        Raises ContextTooLong with the numbers and the remedy, InvalidRequest.
        """
        num_prompt, num_new = len(self.token_ids), call.sampling.max_tokens
        if not num_prompt:
            raise InvalidRequest("the prompt is empty; send at least one token", param="prompt")
        if call.echo and call.sampling.logprobs is not None:
            raise InvalidRequest(
                "echo with logprobs is not supported: the prompt's are not computed; "
                "leave one of them out",
                param="echo",
            )
        if num_prompt + (num_new or 1) <= max_model_len:
            return
        asked = f" and max_tokens {num_new}" if num_new is not None else ""
        remedy = "shorten the prompt"
        if num_prompt < max_model_len:
            remedy = f"lower max_tokens to {max_model_len - num_prompt} or {remedy}"
        raise ContextTooLong(
            f"the prompt's {num_prompt} tokens{asked} do not fit the context of {max_model_len} "
            f"tokens; {remedy}",
            param="messages" if call.endpoint == "chat" else "prompt",
        )


class ModelText:
    """Reads and writes one model's text."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelText":
        """Load a model folder's tokenizer and template. Raises ModelLoadError."""
        return cls(Tokenizer.from_folder(folder), ChatTemplate.from_folder(folder))

    async def encode(self, call: Call) -> Prompt:
        """Return a call's prompt.

        Raises InvalidRequest if the template refuses the messages, or the output's grammar is none.
        """
        if call.sampling.grammar is not None:
            await asyncio.to_thread(_check_grammar, call.sampling.grammar)
        if call.endpoint == "chat":
            token_ids = await self._tokenize(self._render(call), add_special_tokens=False)
            return Prompt(token_ids, prediction_token_ids=await self._prediction(call))
        if isinstance(call.prompt, str):
            token_ids = await self._tokenize(call.prompt, add_special_tokens=True)
            return Prompt(token_ids, call.prompt if call.echo else "")
        token_ids = list(call.prompt)
        return Prompt(token_ids, self._tokenizer.decode(token_ids) if call.echo else "")

    def stream(self, call: Call, token_ids: list[int], index: int) -> TextStream:
        """Return what turns one choice's tokens into text."""
        # A completion goes on with the prompt's text; a chat answer begins anew.
        context = () if call.endpoint == "chat" else token_ids
        return TextStream(self._tokenizer, call.sampling, index=index, context=context)

    def encode_answers(self, answers: Sequence[PastAnswer]) -> list[list[int]]:
        """Return past answers as the suffix index keeps them: behind the end of their prompts.

        Token ids, near enough to those that were read and emitted.
        """
        return [self._encode_answer(answer.call, answer.text) for answer in answers]

    def _encode_answer(self, call: Call, text: str) -> list[int]:
        if call.echo:
            prompt = call.prompt
            text = text.removeprefix(
                prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)
            )
        return [*self._prompt_end(call), *self._tokenizer.encode(text, add_special_tokens=False)]

    def _prompt_end(self, call: Call) -> list[int]:
        if call.endpoint == "chat":
            try:
                return self._tail(self._render(call), add_special_tokens=False)
            except InvalidRequest:  # a template that took it once has been changed
                return []
        if isinstance(call.prompt, str):
            return self._tail(call.prompt, add_special_tokens=True)
        return list(call.prompt[-PROMPT_TAIL:])

    def _tail(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return a prompt's last tokens, of which its last characters are enough."""
        is_whole = len(text) <= _TAIL_CHARS
        ids = self._tokenizer.encode(
            text[-_TAIL_CHARS:], add_special_tokens=add_special_tokens and is_whole
        )
        return ids[-PROMPT_TAIL:]

    def _render(self, call: Call) -> str:
        return self._template.render(
            call.messages, tools=call.tools, variables=call.chat_template_kwargs
        )

    async def _prediction(self, call: Call) -> list[int]:
        # As text that stands by itself: where its tokens differ from the answer's, they are
        # refuted and cost nothing but speed.
        if not call.prediction:
            return []
        return await self._tokenize(call.prediction, add_special_tokens=False)

    async def _tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        encode = self._tokenizer.encode
        if len(text) <= INLINE_CHARS:
            return encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(encode, text, add_special_tokens=add_special_tokens)


def _check_grammar(grammar: Grammar) -> None:
    from quickmatch.engine.text.grammar_source import check_grammar  # 50 ms that few calls need

    check_grammar(grammar)
