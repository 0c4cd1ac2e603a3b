"""The fleet's handle on one engine process: start it, send it requests, know when it is gone.

Owns: the process, its end of the channel, the streams of the requests in flight. It runs in the
gateway's event loop and loads no torch. It does not start a process twice: after an exit the
fleet makes a new client.

Invariant: every stream ends: with its last tokens, with the error that the engine told, or, when
the process has died or fallen silent, with Unavailable.
"""

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from quickmatch.core.clock import monotonic
from quickmatch.core.errors import (
    ConfigError,
    ContextTooLong,
    InvalidRequest,
    ModelLoadError,
    ModelNotFound,
    Overloaded,
    QuickmatchError,
    Unavailable,
)
from quickmatch.core.ids import new_id
from quickmatch.engine.channel import ClientEnd
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.token_stream import TokenStream
from quickmatch.engine.wire import (
    Cancel,
    CommandDone,
    Event,
    Generate,
    LoadAdapter,
    LoadDraft,
    LoadFailed,
    Ready,
    Remember,
    Shutdown,
    Stats,
    Tokens,
    UnloadAdapter,
    UnloadDraft,
)

HEARTBEAT_TIMEOUT_S = 60.0  # a step of a large model's prefill may take long; silence is longer
SHUTDOWN_TIMEOUT_S = 5.0
_MAX_IPC_PATH_BYTES = 90  # the kernel's limit for a socket's path is 107; our suffixes need some
_LAST_WORDS_S = 0.05  # after the process's end, for events that are still on their way

_ERRORS: dict[str | None, type[QuickmatchError]] = {
    "queue_full": Overloaded,
    "context_length_exceeded": ContextTooLong,
    "adapter_not_found": ModelNotFound,
    "invalid_request": InvalidRequest,
}

log = logging.getLogger("quickmatch.engine.client")


def _error_of(tokens: Tokens) -> QuickmatchError:
    kind = _ERRORS.get(tokens.error_code, Unavailable)
    return kind(tokens.error or "the engine gave no reason")


def _socket_folder(run_dir: Path) -> Path:
    """Make a folder that only we may enter, in `run_dir` if its path leaves room for a socket."""
    run_dir.mkdir(parents=True, exist_ok=True)
    place = run_dir if len(os.fsencode(run_dir)) <= _MAX_IPC_PATH_BYTES - 20 else None
    return Path(tempfile.mkdtemp(prefix="engine-", dir=place))


class EngineClient:
    """One engine process. Make it with `start`; use it from that event loop only."""

    def __init__(
        self,
        run_dir: Path,
        *,
        on_exit: Callable[[str], None] | None = None,
        heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S,
    ) -> None:
        self.stats: Stats | None = None  # the latest
        self._on_exit = on_exit
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._folder = _socket_folder(run_dir)
        self._endpoint = f"ipc://{self._folder}/engine"
        self._channel = ClientEnd(self._endpoint)
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        self._streams: dict[str, TokenStream] = {}
        self._commands: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._heard_at = monotonic()
        self._gone: str | None = None  # why it can take no more
        self._is_closing = False

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        run_dir: Path,
        *,
        on_exit: Callable[[str], None] | None = None,
        heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S,
    ) -> "EngineClient":
        """Start a process and return once its model is loaded.

        on_exit: called with the reason when the process ends, after Ready, without `close`.
        Raises ModelLoadError with the engine's message. Cancelling it stops the process.
        """
        client = cls(run_dir, on_exit=on_exit, heartbeat_timeout_s=heartbeat_timeout_s)
        try:
            await client._spawn(config)
            await client._ready
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def ready(self) -> Ready:
        """What the engine told of itself when its model was loaded."""
        return self._ready.result()

    @property
    def is_alive(self) -> bool:
        """Whether a request made now would be sent."""
        return self._gone is None and not self._is_closing

    async def generate(self, request: Generate) -> AsyncGenerator[Tokens, None]:
        """Yield the request's tokens as they come; a slow reader gets several in one piece.

        Closing the generator early cancels the request. Raises Overloaded, ContextTooLong,
        ModelNotFound (adapter), InvalidRequest, and Unavailable when the engine is gone.
        """
        self._check_alive()
        if request.request_id in self._streams:
            raise InvalidRequest(f"request {request.request_id!r} is running already")
        stream = self._streams[request.request_id] = TokenStream()
        try:
            self._channel.send(request)
            while True:
                tokens = await stream.take()
                if tokens.finish_reason == "error":
                    raise _error_of(tokens)
                yield tokens
                if tokens.finish_reason is not None:
                    return
        finally:
            # Still listed: the engine has not ended it.
            if self._streams.pop(request.request_id, None) is not None and self.is_alive:
                self._channel.send(Cancel(request_id=request.request_id))

    async def load_adapter(self, adapter: str, path: str | Path) -> dict[str, Any]:
        """Load a PEFT folder under a version id; return the engine's notes on it.

        Raises ModelLoadError with the engine's reason, Unavailable when the engine is gone.
        """
        command_id = new_id("cmd")
        command = LoadAdapter(command_id=command_id, adapter=adapter, path=str(path))
        try:
            return await self._ask(command_id, command)
        except ConfigError as error:
            raise ModelLoadError(error.message) from error

    async def unload_adapter(self, adapter: str) -> dict[str, Any]:
        """Let no new request use an adapter; it goes when those in flight are done.

        Returns {"num_sequences": how many still hold it}. Raises ConfigError if it is unknown.
        """
        command_id = new_id("cmd")
        return await self._ask(command_id, UnloadAdapter(command_id=command_id, adapter=adapter))

    async def load_draft(self, draft: str, path: str | Path, adapter: str = "") -> dict[str, Any]:
        """Draft with a trained head from the next step on; return the engine's notes on it.

        adapter: version id of the adapter that it was trained for; "": the base model.
        Raises ModelLoadError with the engine's reason, Unavailable when the engine is gone.
        """
        command_id = new_id("cmd")
        command = LoadDraft(command_id=command_id, draft=draft, path=str(path), adapter=adapter)
        try:
            return await self._ask(command_id, command)
        except ConfigError as error:
            raise ModelLoadError(error.message) from error

    async def unload_draft(self, adapter: str = "") -> dict[str, Any]:
        """Forget the head that stands for `adapter`. Raises ConfigError if there is none."""
        command_id = new_id("cmd")
        return await self._ask(command_id, UnloadDraft(command_id=command_id, adapter=adapter))

    def remember(
        self,
        outputs: Iterable[Sequence[int]],
        *,
        tenant: str,
        adapter: str | None = None,
        isolation_key: str = "",
    ) -> None:
        """Put past outputs, oldest first, into the suffix index. Returns at once."""
        self._check_alive()
        lists = [list(output) for output in outputs]
        self._channel.send(
            Remember(tenant=tenant, adapter=adapter, outputs=lists, isolation_key=isolation_key)
        )

    async def close(self) -> None:
        """Stop the process: ask, then terminate, then kill. May be called twice."""
        self._is_closing = True
        self._fail_all("the engine is shutting down; try again in a moment")
        if self._process is None or self._watcher is None:
            self._release()
            return
        if self._gone is None and self._is_loaded:
            self._channel.send(Shutdown())
            await asyncio.wait([self._watcher], timeout=SHUTDOWN_TIMEOUT_S)
        for stop in (self._process.terminate, self._process.kill):
            if self._process.returncode is None:
                stop()
                await asyncio.wait([self._watcher], timeout=SHUTDOWN_TIMEOUT_S)
        await self._watcher

    # ---- inside

    @property
    def _is_loaded(self) -> bool:
        ready = self._ready
        return ready.done() and not ready.cancelled() and ready.exception() is None

    async def _spawn(self, config: EngineConfig) -> None:
        # OpenMP's threads spin at barriers by default: beside any other work on the machine (this
        # process, a job) a step then takes many times as long.
        self._loop.add_reader(self._channel.fileno(), self._read)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "quickmatch.engine.process"),
            *("--config", msgspec.json.encode(config).decode()),
            *("--endpoint", self._endpoint),
            *("--parent-pid", str(os.getpid())),
            stdin=asyncio.subprocess.DEVNULL,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
        self._watcher = self._loop.create_task(self._watch(self._process))

    def _read(self) -> None:
        """Take in all that has arrived. Work per event does not grow with the streams."""
        for event in self._channel.receive():
            self._heard_at = monotonic()
            self._dispatch(event)

    def _dispatch(self, event: Event) -> None:
        match event:
            case Tokens(request_id=request_id, finish_reason=None):
                if stream := self._streams.get(request_id):
                    stream.put(event)
            case Tokens(request_id=request_id):
                if stream := self._streams.pop(request_id, None):
                    stream.put(event)
            case Stats():
                self.stats = event
            case CommandDone(command_id=command_id):
                future = self._commands.pop(command_id, None)
                if future is None or future.done():
                    return
                if event.error is None:
                    future.set_result(event.detail)
                else:
                    future.set_exception(ConfigError(event.error))
            case Ready() if not self._ready.done():
                self._ready.set_result(event)
            case LoadFailed(message=message) if not self._ready.done():
                self._ready.set_exception(ModelLoadError(message))

    async def _ask(
        self, command_id: str, command: LoadAdapter | UnloadAdapter | LoadDraft | UnloadDraft
    ) -> dict[str, Any]:
        self._check_alive()
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._commands[command_id] = future
        self._channel.send(command)
        try:
            return await future
        finally:
            self._commands.pop(command_id, None)

    def _check_alive(self) -> None:
        if not self.is_alive:
            raise Unavailable(self._gone or "the engine is shutting down; try again in a moment")

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Wait for the process's end, kill it if it falls silent, then end what hangs on it."""
        waiting = self._loop.create_task(process.wait())
        while not waiting.done():
            await asyncio.wait([waiting], timeout=min(1.0, self._heartbeat_timeout_s / 4))
            self._read()  # it may be this loop that was late, not the engine
            silent_s = monotonic() - self._heard_at
            if self._is_loaded and silent_s > self._heartbeat_timeout_s and not waiting.done():
                log.error("engine %d has been silent for %.0f s; killing it", process.pid, silent_s)
                process.kill()
                await waiting
        await asyncio.sleep(_LAST_WORDS_S)
        self._read()
        self._gone = (
            f"the engine process ended with status {process.returncode}; it is restarted if its "
            "deployment allows, so try again in a moment"
        )
        if not self._ready.done():
            self._ready.set_exception(ModelLoadError(_died_loading(process.returncode)))
        self._fail_all(self._gone)
        self._release()
        if self._is_loaded and not self._is_closing and self._on_exit is not None:
            self._on_exit(self._gone)

    def _fail_all(self, reason: str) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(Unavailable(reason))
        for future in self._commands.values():
            if not future.done():
                future.set_exception(Unavailable(reason))

    def _release(self) -> None:
        if self._folder.exists():
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            shutil.rmtree(self._folder, ignore_errors=True)


def _died_loading(status: int | None) -> str:
    hint = ""
    if status == -9:
        hint = "; killed, most often for memory: lower kv_memory_fraction or take a smaller model"
    return f"the engine process ended with status {status} while it loaded the model{hint}"
