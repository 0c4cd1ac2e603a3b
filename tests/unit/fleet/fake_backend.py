"""A backend without an engine: it answers with words that depend on the call and the weights."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from quickmatch.core.call import Call
from quickmatch.core.completion import Delta, FinishReason, TokenLogprob, Usage
from quickmatch.core.errors import ConfigError, QuickmatchError
from quickmatch.fleet.backend import PastAnswer, Target


def asked(call: Call) -> str:
    """Return what the call is about, as one string."""
    return str(call.messages[-1]["content"]) if call.endpoint == "chat" else str(call.prompt)


@dataclass
class FakeBackend:
    """Streams "version says: prompt" word by word for each choice, then the usage."""

    delay_s: float = 0.0  # before each word
    error: QuickmatchError | None = None  # raised instead of a word...
    error_after: int = 0  # ...when so many words are out...
    num_errors: int = -1  # ...so many times; -1: always
    num_words: int | None = None  # None: as many as the answer has
    is_ready: bool = True
    info: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    num_open: int = 0
    num_cancelled: int = 0
    loaded: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    start_errors: list[QuickmatchError] = field(default_factory=list)
    load_errors: dict[str, QuickmatchError] = field(default_factory=dict)
    drafts: dict[str, str] = field(default_factory=dict)  # adapter version id -> head
    past_answers: list[PastAnswer] = field(default_factory=list)
    remembered: list[tuple[str, str | None, str]] = field(default_factory=list)  # of the same
    remember_errors: list[Exception] = field(default_factory=list)
    max_remembered_tokens: int = 1000
    death: "asyncio.Future[str] | None" = None

    async def start(self) -> None:
        self.log.append("start")
        if self.start_errors:
            raise self.start_errors.pop(0)
        self.death = asyncio.get_running_loop().create_future()
        self.is_ready = True

    async def stream(self, call: Call, target: Target) -> AsyncGenerator[Delta | Usage, None]:
        self.calls.append(call)
        self.num_open += 1
        target.notes.queue_s = 0.001
        is_done = False
        try:
            words = f"{target.version_id} says: {asked(call)}".split(" ")
            words = words[: self.num_words] if self.num_words else words
            for number, word in enumerate(words):
                await asyncio.sleep(self.delay_s)
                if self.error is not None and number >= self.error_after and self.num_errors:
                    self.num_errors -= 1
                    raise self.error
                for index in range(call.n):
                    yield self._delta(call, index, number, word)
            for index in range(call.n):
                yield Delta(index, finish_reason=FinishReason.STOP)
            foretold = call.prediction.split(" ")
            pairs = [a == b for a, b in zip(words, foretold, strict=False)]
            counts = (sum(pairs), len(pairs) - sum(pairs)) if call.prediction else (0, 0)
            yield Usage(7, len(words) * call.n, 3, *counts)
            is_done = True
        finally:
            self.num_open -= 1
            self.num_cancelled += not is_done

    def _delta(self, call: Call, index: int, number: int, word: str) -> Delta:
        text = word if number == 0 else f" {word}"
        logprobs = ()
        if call.sampling.logprobs is not None:
            top = tuple((i, f"t{i}", -1.0 - i) for i in range(call.sampling.logprobs))
            logprobs = (TokenLogprob(number, text, -0.5, top),)
        return Delta(index, text, (number,), logprobs)

    async def load_adapter(self, adapter: str, path: str) -> None:
        if adapter in self.load_errors:
            raise self.load_errors[adapter]
        self.log.append(f"load {adapter}")
        self.loaded[adapter] = path

    async def unload_adapter(self, adapter: str) -> None:
        self.log.append(f"unload {adapter}")
        del self.loaded[adapter]

    async def load_draft(self, draft: str, path: str, adapter: str) -> dict[str, Any]:
        if draft in self.load_errors:
            raise self.load_errors[draft]
        self.log.append(f"draft {draft} for {adapter or 'base'} from {path}")
        self.drafts[adapter] = draft
        return {"swap_s": 0.002}

    async def unload_draft(self, adapter: str) -> None:
        if adapter not in self.drafts:
            raise ConfigError(f"no draft stands for {adapter!r}")
        del self.drafts[adapter]

    async def remember(self, answers: Sequence[PastAnswer], *, adapter: str | None) -> None:
        if self.remember_errors:
            raise self.remember_errors.pop(0)
        self.past_answers += answers
        self.remembered += [(answer.call.tenant, adapter, answer.text) for answer in answers]

    async def died(self) -> str:
        assert self.death is not None
        reason = await asyncio.shield(self.death)
        self.is_ready = False
        return reason

    def kill(self) -> None:
        assert self.death is not None
        self.is_ready = False
        self.loaded.clear()
        self.drafts.clear()
        self.death.set_result("killed")

    async def close(self) -> None:
        self.log.append("close")
        self.is_ready = False
