"""Another provider's model behind our own URL: any OpenAI-compatible API, by httpx.

Owns one HTTP client, retries and the mapping of a provider's errors to ours. Always asks for a
stream, so that one code path serves callers who stream and callers who don't; a provider that
answers with whole JSON all the same is read too.
Invariant: a call is tried again only while nothing of its answer has been passed on.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import uniform
from typing import Any

import httpx

from quickmatch.core.call import Call
from quickmatch.core.completion import Delta, Usage
from quickmatch.core.errors import (
    ConfigError,
    InvalidRequest,
    ModelLoadError,
    Overloaded,
    QuickmatchError,
    UpstreamError,
)
from quickmatch.fleet.backend import PastAnswer, Target
from quickmatch.fleet.openai_wire import read_events, request_body, whole_to_items
from quickmatch.store.documents import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSettings:
    """Where the provider is, and how patiently it is asked."""

    url: str  # ending in /v1
    model: str
    api_key_env: str = ""
    max_retries: int = 3
    backoff_s: float = 0.5  # doubles, with jitter; the provider's Retry-After wins
    max_backoff_s: float = 20.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 120.0  # between two pieces of an answer

    @classmethod
    def of(cls, model: Model) -> "RemoteSettings":
        """Return the settings that a model's document holds. Raises ConfigError without a URL."""
        if not model.remote_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"remote model {model.id!r} has the URL {model.remote_url!r}; "
                "it must start with http:// or https:// and end in /v1"
            )
        return cls(
            url=model.remote_url.rstrip("/"),
            model=model.remote_model or model.id,
            api_key_env=model.api_key_env,
        )


class Retryable(Exception):
    """The provider may answer if asked again. `error` is what the caller sees at the end."""

    def __init__(self, error: QuickmatchError, after_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.after_s = after_s


class RemoteBackend:
    """A provider. It has no process that could die; every failure belongs to one call."""

    def __init__(
        self, settings: RemoteSettings, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    @property
    def is_ready(self) -> bool:
        """Whether `start` has been called."""
        return self._client is not None

    @property
    def info(self) -> dict[str, Any]:
        """Where answers come from."""
        return {"remote_url": self._settings.url, "remote_model": self._settings.model}

    async def start(self) -> None:
        """Read the key and open the client. Raises ConfigError if the key is not there."""
        headers = {"User-Agent": "quickmatch"}
        if name := self._settings.api_key_env:
            key = os.environ.get(name)
            if not key:
                raise ConfigError(
                    f"the environment variable {name} that holds the key for "
                    f"{self._settings.url} is not set; export it before `quickmatch serve`"
                )
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(
                self._settings.read_timeout_s, connect=self._settings.connect_timeout_s
            ),
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
            transport=self._transport,
        )

    async def stream(self, call: Call, target: Target) -> AsyncGenerator[Delta | Usage, None]:
        """Answer through the provider, with retries while nothing has been passed on."""
        body = request_body(call, self._settings.model)
        backoff_s = self._settings.backoff_s
        while True:
            has_started = False
            try:
                async with aclosing(self._attempt(call, body)) as items:
                    async for item in items:
                        has_started = True
                        yield item
                return
            except Retryable as failure:
                if has_started or target.notes.num_retries >= self._settings.max_retries:
                    raise failure.error from failure
                pause_s = failure.after_s or backoff_s * uniform(0.5, 1.0)
            target.notes.num_retries += 1
            await asyncio.sleep(min(pause_s, self._settings.max_backoff_s))
            backoff_s *= 2

    async def load_adapter(self, adapter: str, path: str) -> None:  # noqa: ARG002
        """Refuse: a provider's weights are not ours to change."""
        raise ModelLoadError(
            f"adapter {adapter!r} cannot be loaded on a remote model; deploy its base model"
        )

    async def unload_adapter(self, adapter: str) -> None:
        """Nothing is loaded."""

    async def load_draft(self, draft: str, path: str, adapter: str) -> dict[str, Any]:  # noqa: ARG002
        """Refuse: how a provider decodes is not ours to change."""
        raise ConfigError(
            f"draft {draft!r} cannot be loaded on a remote model; deploy its base model here"
        )

    async def unload_draft(self, adapter: str) -> None:
        """Refuse: nothing can be loaded."""
        raise ConfigError(f"a remote model drafts with no head of ours, so none for {adapter!r}")

    @property
    def max_remembered_tokens(self) -> int:
        """None: the provider keeps its own memory."""
        return 0

    async def remember(self, answers: Sequence[PastAnswer], *, adapter: str | None) -> None:
        """Nothing is kept."""

    async def died(self) -> str:
        """Never returns."""
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _attempt(
        self, call: Call, body: dict[str, Any]
    ) -> AsyncGenerator[Delta | Usage, None]:
        assert self._client is not None, "start() comes first"
        path = "/chat/completions" if call.endpoint == "chat" else "/completions"
        url = self._settings.url + path
        try:
            async with self._client.stream("POST", url, json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise self._failure(response)
                if response.headers.get("content-type", "").startswith("application/json"):
                    for item in whole_to_items(await response.aread(), call):
                        yield item
                    return
                async with aclosing(read_events(response, call)) as items:
                    async for item in items:
                        yield item
        except httpx.TimeoutException as error:
            raise Retryable(self._error(f"no answer in time ({type(error).__name__})")) from error
        except httpx.HTTPError as error:
            raise Retryable(self._error(str(error) or type(error).__name__)) from error

    def _error(self, text: str) -> UpstreamError:
        return UpstreamError(f"{self._settings.url}: {text}")

    def _failure(self, response: httpx.Response) -> Exception:
        status, text = response.status_code, _message(response)
        if status == 429:
            after_s = _retry_after_s(response)
            error = Overloaded(
                f"{self._settings.url} answered 429: {text}", retry_after_s=int(after_s or 1)
            )
            return Retryable(error, after_s)
        if status >= 500 or status == 408:
            error_5xx = self._error(f"answered {status}: {text}")
            return Retryable(error_5xx, _retry_after_s(response))
        if status in (401, 403):
            env = self._settings.api_key_env or "(none is configured)"
            return self._error(f"refused the key from {env}: {text}")
        if status in (400, 404, 413, 422):
            return InvalidRequest(f"{self._settings.url} answered {status}: {text}")
        return self._error(f"answered {status}: {text}")


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        text = response.text
    return str(text)[:500] or response.reason_phrase


def _retry_after_s(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):  # absent, or a date
        return None
