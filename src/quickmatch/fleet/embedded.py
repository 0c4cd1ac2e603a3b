"""Our own engine behind a deployment: text on this side, tokens in the engine's process.

Owns one engine process through its client, the n choices of a call, and the adapters that must
come back with the process. Text and token ids are embedded_text's. Does not know what runs inside
the process, nor when it should be started again: its keeper does.
Invariant: a call whose answer has not begun survives one death of the engine; an answer that has
begun fails with Unavailable and is never silently continued by another process.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from quickmatch.core.call import Call
from quickmatch.core.completion import Delta, Usage
from quickmatch.core.errors import ModelLoadError, QuickmatchError, Unavailable
from quickmatch.core.settings import Home
from quickmatch.engine.client import EngineClient
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.folder import resolve_model
from quickmatch.engine.wire import Generate, Tokens
from quickmatch.fleet.backend import PastAnswer, Target
from quickmatch.fleet.embedded_config import choice_sampling, engine_config
from quickmatch.fleet.merge import merge
from quickmatch.store.documents import Deployment, Model

if TYPE_CHECKING:
    from quickmatch.engine.text.stream import TextStream
    from quickmatch.fleet.embedded_text import ModelText, Prompt

log = logging.getLogger(__name__)

StartEngine = Callable[..., Awaitable[EngineClient]]

NOTICE_S = 0.1  # a socket may fail before the process's end has been noticed
RETRY_WAIT_S = 30.0  # how long a call that has not begun waits for the restarted engine


@dataclass(slots=True)
class _Tally:
    """Token counts of a call, from its choices as they end."""

    completion_tokens: int = 0
    cached_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    queue_s: float | None = None

    def add(self, text: "TextStream") -> None:
        """Count a choice that has ended. The prompt is the same for all of them."""
        self.completion_tokens += text.num_tokens
        self.accepted_prediction_tokens += text.num_accepted_prediction_tokens
        self.rejected_prediction_tokens += text.num_rejected_prediction_tokens
        if text.index == 0:
            self.cached_tokens = text.num_cached_tokens

    def usage(self, prompt_tokens: int) -> Usage:
        """Return the whole call's usage."""
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            accepted_prediction_tokens=self.accepted_prediction_tokens,
            rejected_prediction_tokens=self.rejected_prediction_tokens,
        )


@dataclass(slots=True)
class _Life:
    """One run of the engine process."""

    client: EngineClient
    death: asyncio.Future[str] = field(default_factory=asyncio.Future)


class EmbeddedBackend:
    """One engine process, started again with `start` after each death."""

    def __init__(
        self, config: EngineConfig, run_dir: Path, *, start_engine: StartEngine = EngineClient.start
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._start_engine = start_engine
        self._text: ModelText | None = None
        self._life: _Life | None = None
        self._adapters: dict[str, str] = {}  # version id -> path, to be loaded after a restart
        self._is_up = asyncio.Event()
        self._is_closed = False

    @classmethod
    def for_deployment(
        cls, deployment: Deployment, model: Model, home: Home, *, draft_model: Model | None = None
    ) -> "EmbeddedBackend":
        """Return the backend that a deployment's document describes. Raises ConfigError.

        draft_model: the model that its speculation settings name, if they name one.
        """
        settings = deployment.engine, deployment.speculation
        return cls(engine_config(model, *settings, draft_model=draft_model), home.run)

    @property
    def is_ready(self) -> bool:
        """Whether the engine is up, its adapters loaded."""
        return self._is_up.is_set() and self._life is not None and self._life.client.is_alive

    @property
    def info(self) -> dict[str, Any]:
        """What the engine told of itself, and its newest stats."""
        if self._life is None:
            return {}
        client = self._life.client
        stats = {} if client.stats is None else _plain(client.stats)
        return {**_plain(client.ready), "stats": stats}

    async def start(self) -> None:
        """Start the engine and load the adapters that it had. Raises ModelLoadError."""
        folder = await asyncio.to_thread(resolve_model, self._config.model)
        speculation = self._config.speculation
        if speculation.draft_model:
            draft = await asyncio.to_thread(resolve_model, speculation.draft_model)
            speculation = replace(speculation, draft_model=str(draft))
        config = replace(self._config, model=str(folder), speculation=speculation)
        client = await self._start_beside_text(config, folder)
        self._life = _Life(client)
        for adapter, path in list(self._adapters.items()):
            try:
                await client.load_adapter(adapter, path)
            except ModelLoadError as error:  # its folder is gone; calls for it get a 404
                log.error("adapter %s did not come back: %s", adapter, error.message)
        if client.is_alive:
            self._is_up.set()

    async def stream(self, call: Call, target: Target) -> AsyncGenerator[Delta | Usage, None]:
        """Answer one call; see Backend.stream for the order of items."""
        if self._text is None:
            raise Unavailable("the engine is not loaded yet; try again in a moment")
        prompt = await self._text.encode(call)
        prompt.check_fits(call, self._client().ready.max_model_len)
        while True:
            has_begun = False
            try:
                async with aclosing(self._attempt(call, target, prompt)) as items:
                    async for item in items:
                        has_begun = True
                        yield item
                return
            except Unavailable:
                if has_begun or target.notes.num_retries or not await self._comes_back():
                    raise
                target.notes.num_retries += 1

    async def load_adapter(self, adapter: str, path: str) -> None:
        """Load an adapter under its version id, now and after every restart."""
        await self._client().load_adapter(adapter, path)
        self._adapters[adapter] = path

    async def unload_adapter(self, adapter: str) -> None:
        """Forget an adapter."""
        self._adapters.pop(adapter, None)
        await self._client().unload_adapter(adapter)

    async def load_draft(self, draft: str, path: str, adapter: str) -> dict[str, Any]:
        """Draft with a trained head from the next step on; its keeper brings it back."""
        return await self._client().load_draft(draft, path, adapter)

    async def unload_draft(self, adapter: str) -> None:
        """Forget the head that stands for `adapter`."""
        await self._client().unload_draft(adapter)

    @property
    def max_remembered_tokens(self) -> int:
        """What the suffix index holds at most."""
        speculation = self._config.speculation
        return speculation.suffix_max_tokens if "suffix" in speculation.drafters else 0

    async def remember(self, answers: Sequence[PastAnswer], *, adapter: str | None) -> None:
        """Put past answers, oldest first, into the suffix index."""
        if self._text is None:
            raise Unavailable("the engine is not loaded yet; try again in a moment")
        outputs = await asyncio.to_thread(self._text.encode_answers, answers)
        client = self._client()
        for answer, output in zip(answers, outputs, strict=True):
            call = answer.call
            client.remember(
                [output], tenant=call.tenant, adapter=adapter, isolation_key=call.isolation_key
            )

    async def died(self) -> str:
        """Return, once the engine process has ended by itself, why."""
        if self._life is None:
            return "the engine is not running"
        return await asyncio.shield(self._life.death)

    async def close(self) -> None:
        """Stop the engine process."""
        self._is_closed = True
        self._is_up.clear()
        life, self._life = self._life, None
        if life is not None:
            life.death.cancel()
            await life.client.close()

    # ---- inside

    async def _start_beside_text(self, config: EngineConfig, folder: Path) -> EngineClient:
        """Start the engine, and meanwhile read the text side if that has not been read."""
        starting = asyncio.ensure_future(
            self._start_engine(config, self._run_dir, on_exit=self._exited)
        )
        await asyncio.sleep(0)  # the process first: it has more to read
        try:
            if self._text is None:
                self._text = await asyncio.to_thread(_read_text, folder)
            return await starting
        except BaseException:
            starting.cancel()
            (client,) = await asyncio.gather(starting, return_exceptions=True)
            if not isinstance(client, BaseException):
                await client.close()
            raise

    def _client(self) -> EngineClient:
        if self._life is None:
            raise Unavailable("the engine is not running; try again in a moment")
        return self._life.client

    def _exited(self, reason: str) -> None:
        self._is_up.clear()
        if self._life is not None and not self._life.death.done():
            self._life.death.set_result(reason)

    async def _comes_back(self) -> bool:
        if self._is_closed:
            return False
        await asyncio.sleep(NOTICE_S)
        try:
            await asyncio.wait_for(self._is_up.wait(), RETRY_WAIT_S)
        except TimeoutError:
            return False
        return True

    async def _attempt(
        self, call: Call, target: Target, prompt: "Prompt"
    ) -> AsyncGenerator[Delta | Usage, None]:
        client, tally = self._client(), _Tally()
        choices = [
            self._choice(client, call, target, prompt, index, tally) for index in range(call.n)
        ]
        echoed: set[int] = set()
        async with aclosing(merge(choices)) as items:
            async for index, delta in items:
                target.notes.queue_s = tally.queue_s
                if prompt.echo and index not in echoed:
                    echoed.add(index)
                    yield Delta(index, prompt.echo)
                yield delta
        yield tally.usage(len(prompt.token_ids))

    async def _choice(
        self,
        client: EngineClient,
        call: Call,
        target: Target,
        prompt: "Prompt",
        index: int,
        tally: _Tally,
    ) -> AsyncGenerator[Delta, None]:
        assert self._text is not None
        text = self._text.stream(call, prompt.token_ids, index)
        request = Generate(
            request_id=f"{call.id}/{index}/{target.notes.num_retries}",
            prompt_token_ids=prompt.token_ids,
            sampling=choice_sampling(call.sampling, index),
            adapter=target.adapter,
            isolation_key=call.isolation_key,
            tenant=call.tenant,
            # What lies beyond the context can never be emitted.
            prediction_token_ids=prompt.prediction_token_ids[: client.ready.max_model_len],
        )
        async with aclosing(_reached(client, request)) as pieces:
            async for tokens in pieces:
                if tally.queue_s is None:
                    tally.queue_s = tokens.queue_s
                yield text.push(tokens)
                if text.is_finished:
                    break
        tally.add(text)


def _read_text(folder: Path) -> "ModelText":
    # Here and not above: tokenizers and templates are read while the engine starts.
    from quickmatch.fleet.embedded_text import ModelText

    return ModelText.from_folder(folder)


async def _reached(client: EngineClient, request: Generate) -> AsyncGenerator[Tokens, None]:
    """Yield a sequence's tokens; whatever fails on the way to the process means it is not there."""
    try:
        async with aclosing(client.generate(request)) as pieces:
            async for tokens in pieces:
                yield tokens
    except QuickmatchError:
        raise
    except Exception as error:  # the boundary to the engine's process
        log.error("the engine cannot be reached", exc_info=error)
        raise Unavailable("the engine cannot be reached; try again in a moment") from error


def _plain(struct: msgspec.Struct) -> dict[str, Any]:
    """Return a message as dicts, lists and numbers all the way down, without its tag."""
    values: dict[str, Any] = msgspec.to_builtins(struct)
    values.pop("type", None)
    return values
