"""The application's side of a call: the official OpenAI client, a stopwatch, many at a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from examples.credit_cards.prompts import Message

TIMEOUT_S = 120.0
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, with what the client saw of it. Times in seconds."""

    model: str
    text: str
    began_at: float  # wall clock
    ttft_s: float  # to the first text
    total_s: float
    num_tokens: int
    cache: str  # what the gateway said: hit, miss or bypass
    finish_reason: str

    @property
    def first_token_at(self) -> float:
        """Wall clock of the first text."""
        return self.began_at + self.ttft_s


class Client:
    """Calls models behind one URL, without retries: a failure shall be seen."""

    def __init__(self, url: str, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._openai = AsyncOpenAI(
            base_url=url,
            api_key="none",
            max_retries=0,
            http_client=DefaultAsyncHttpxClient(timeout=TIMEOUT_S, trust_env=False),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._openai.close()

    async def stream(
        self, model: str, messages: Sequence[Message], *, fresh: bool = False
    ) -> Answer:
        """Ask for a streamed answer at temperature 0; `fresh`: not from the cache."""
        began_at, start = time.time(), time.perf_counter()
        raw = await self._openai.chat.completions.with_raw_response.create(
            **self._request(model, messages),
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"Cache-Control": "no-store"} if fresh else None,
        )
        parts: list[str] = []
        num_tokens, ttft_s, reason = 0, 0.0, ""
        async for chunk in raw.parse():
            if chunk.usage is not None:
                num_tokens = chunk.usage.completion_tokens
            for choice in chunk.choices:
                reason = choice.finish_reason or reason
                if choice.delta.content:
                    ttft_s = ttft_s or time.perf_counter() - start
                    parts.append(choice.delta.content)
        total_s = time.perf_counter() - start
        return Answer(
            model=model,
            text="".join(parts),
            began_at=began_at,
            ttft_s=ttft_s or total_s,
            total_s=total_s,
            num_tokens=num_tokens,
            cache=raw.headers.get("x-quickmatch-cache", ""),
            finish_reason=reason,
        )

    async def whole(
        self, model: str, messages: Sequence[Message], tags: dict[str, str] | None = None
    ) -> Answer:
        """Ask for a whole answer at temperature 0; with tags, opt in to a trace that has them."""
        began_at, start = time.time(), time.perf_counter()
        recorded: dict[str, Any] = {"store": True, "metadata": tags} if tags else {}
        raw = await self._openai.chat.completions.with_raw_response.create(
            **self._request(model, messages), **recorded
        )
        reply = raw.parse()
        total_s = time.perf_counter() - start
        return Answer(
            model=model,
            text=reply.choices[0].message.content or "",
            began_at=began_at,
            ttft_s=total_s,
            total_s=total_s,
            num_tokens=reply.usage.completion_tokens if reply.usage else 0,
            cache=raw.headers.get("x-quickmatch-cache", ""),
            finish_reason=reply.choices[0].finish_reason,
        )

    def _request(self, model: str, messages: Sequence[Message]) -> dict[str, Any]:
        limit = self._max_tokens
        return {"model": model, "messages": messages, "temperature": 0, "max_tokens": limit}


async def gather(
    items: Iterable[T], call: Callable[[T], Awaitable[R]], concurrency: int
) -> list[R]:
    """Call for each item, so many at a time; results in the items' order. The first error ends."""
    free = asyncio.Semaphore(concurrency)

    async def one(item: T) -> R:
        async with free:
            return await call(item)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(item)) for item in items]
    return [task.result() for task in tasks]


def told(error: BaseException) -> str:
    """Return in one line what a failed call said."""
    if isinstance(error, BaseExceptionGroup):
        return told(error.exceptions[0])
    if isinstance(error, openai.APIStatusError) and isinstance(error.body, dict):
        return f"{error.status_code}: {error.body.get('message', error.message)}"
    return f"{type(error).__name__}: {error}"
