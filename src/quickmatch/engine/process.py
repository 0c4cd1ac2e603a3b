"""The engine process: `python -m quickmatch.engine.process --config JSON --endpoint ipc://PATH`.

Owns: the loop around one `Engine` and its end of the channel. Torch lives in this process only.
It does not decide whether to start again after a crash: its fleet does.

The life of it: connect; load the model and send Ready, or send LoadFailed and exit with 2; then
take commands, step, send events. While idle it sleeps in the socket and sends a heartbeat each
second. It ends with 0 on Shutdown, on SIGTERM, and when the process that started it is gone; with
1 when a step throws, after every request in flight has been answered with an error.
"""

import argparse
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from quickmatch.core.clock import monotonic
from quickmatch.core.errors import InvalidRequest, QuickmatchError
from quickmatch.engine.channel import EngineEnd
from quickmatch.engine.config import EngineConfig
from quickmatch.engine.engine import Engine
from quickmatch.engine.folder import resolve_model
from quickmatch.engine.model_config import read_model_config
from quickmatch.engine.parent import is_orphan, tie_to_parent
from quickmatch.engine.reader import Reader
from quickmatch.engine.waiting import WaitingRequests
from quickmatch.engine.wire import (
    Cancel,
    Command,
    CommandDone,
    Event,
    Generate,
    LoadAdapter,
    LoadDraft,
    LoadFailed,
    Ready,
    Remember,
    Shutdown,
    Tokens,
    UnloadAdapter,
    UnloadDraft,
)

HEARTBEAT_S = 1.0  # between two Stats while idle
BUSY_STATS_S = 0.25  # while busy
READING_POLL_S = 0.005  # while idle and something is being read

Change = LoadAdapter | UnloadAdapter | LoadDraft | UnloadDraft

log = logging.getLogger("quickmatch.engine")


def resident_bytes() -> int:
    """Return the memory that this process holds now (elsewhere than on Linux: its highest)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class EngineLoop:
    """Commands, step, events, over and over."""

    def __init__(
        self, engine: Engine, channel: EngineEnd, parent_pid: int, *, max_waiting: int
    ) -> None:
        self._engine = engine
        self._channel = channel
        self._parent_pid = parent_pid
        self._outbox: list[Event] = []
        self._reader = Reader()
        self._waiting = WaitingRequests(self._reader, admit=self._admit, refuse=self._refuse)
        self._max_waiting = max_waiting
        self._is_stopping = False
        self._stats_at = 0.0  # monotonic time of the last Stats
        self._steps_at_stats = 0
        self._step_time_s = 0.0  # spent in steps since the last Stats

    def run(self) -> int:
        """Serve until told to stop; return the exit status."""
        while not self._is_stopping:
            self._waiting.go_on()
            self._take_commands()
            self._reader.finish()
            if self._engine.has_work and not self._step():
                return 1
            self._send_stats_if_due()
            self._channel.send(self._outbox)
            self._outbox = []
        return 0

    def _take_commands(self) -> None:
        timeout_s = 0.0
        if not self._engine.has_work:
            timeout_s = max(0.0, self._stats_at + HEARTBEAT_S - monotonic())
            if self._reader.is_busy:
                timeout_s = min(timeout_s, READING_POLL_S)
        for command in self._channel.receive(timeout_s):
            self._obey(command)

    def _obey(self, command: Command) -> None:
        match command:
            case Generate():
                final = self._add(command)
            case Cancel(request_id=request_id):
                final = self._cancel(request_id)
            case Shutdown():
                self._is_stopping = True
                return
            case Remember(tenant=tenant, adapter=adapter, outputs=outputs, isolation_key=key):
                self._engine.remember(tenant, adapter, outputs, isolation_key=key)
                return
            case LoadDraft() | LoadAdapter() | UnloadAdapter() | UnloadDraft():
                self._reader.start(partial(self._read_for, command), partial(self._take, command))
                return
        if final is not None:
            self._outbox.append(final)

    # ---- adapters and heads

    def _read_for(self, command: Change) -> Any:
        """Read what a command brings, in the reader's thread."""
        match command:
            case LoadDraft(path=path):
                return self._engine.runner.read_draft(path)
            case LoadAdapter(path=path):
                return self._engine.runner.read_adapter(path)
        return None  # nothing to read; but commands are obeyed in order

    def _take(self, command: Change, reading: Future[Any]) -> None:
        self._answer(command, partial(self._change, command, reading))

    def _change(self, command: Change, reading: Future[Any]) -> dict[str, Any]:
        match command:
            case LoadDraft(adapter=adapter, draft=draft):
                return self._engine.swap_draft(adapter, draft, reading.result())
            case LoadAdapter(adapter=adapter, path=path):
                return self._engine.load_adapter(adapter, path, reading.result())
            case UnloadAdapter(adapter=adapter):
                return self._engine.unload_adapter(adapter)
            case UnloadDraft(adapter=adapter):
                return self._engine.unload_draft(adapter)

    # ---- requests

    def _add(self, request: Generate) -> Tokens | None:
        """Have the engine take a request, or keep it until what it needs has been read."""
        missing = self._engine.missing(request)
        if missing is None:
            return self._engine.add(request)
        if len(self._waiting) >= self._max_waiting:
            words = f"{len(self._waiting)} requests wait for adapters; try again in a moment"
            return _failed(request, words, "queue_full")
        self._waiting.add(request, missing)
        return None

    def _admit(self, request: Generate) -> None:
        """Take a request that waited; it may need one thing more."""
        if (final := self._add(request)) is not None:
            self._outbox.append(final)

    def _refuse(self, request: Generate, failure: Exception) -> None:
        code = "invalid_request" if isinstance(failure, InvalidRequest) else None
        words = _reason(failure, "what a request needs")
        self._outbox.append(_failed(request, words, code))

    def _cancel(self, request_id: str) -> Tokens | None:
        if self._waiting.remove(request_id):
            return Tokens(request_id=request_id, token_ids=[], finish_reason="cancel")
        return self._engine.cancel(request_id)

    def _answer(self, command: Change, act: Callable[[], dict[str, Any]]) -> None:
        """Do what a command asks, and tell how it went."""
        error, detail = None, {}
        try:
            detail = act()
        except Exception as failure:  # process boundary: a bad folder must not end the others
            subject = f"adapter {command.adapter!r}"
            if isinstance(command, LoadDraft):
                subject = f"draft {command.draft!r}"
            error = _reason(failure, subject)
        self._outbox.append(CommandDone(command_id=command.command_id, error=error, detail=detail))

    def _step(self) -> bool:
        """Run one step; False if it threw, and every request has been told."""
        started = monotonic()
        try:
            self._outbox.extend(self._engine.step())
        except Exception:  # process boundary
            words = "the engine failed while it computed; try again"
            failed = self._engine.failures(words)
            failed += [_failed(request, words) for request in self._waiting]
            log.exception("a step failed; %d requests end with an error", len(failed))
            self._channel.send([*self._outbox, *failed])
            return False
        self._step_time_s += monotonic() - started
        return True

    def _send_stats_if_due(self) -> None:
        now = monotonic()
        period_s = BUSY_STATS_S if self._engine.has_work else HEARTBEAT_S
        if now - self._stats_at < period_s:
            return
        num_steps = self._engine.num_steps - self._steps_at_stats
        self._outbox.append(
            self._engine.stats(
                step_s=self._step_time_s / num_steps if num_steps else 0.0,
                rss_bytes=resident_bytes(),
            )
        )
        self._stats_at = now
        self._steps_at_stats, self._step_time_s = self._engine.num_steps, 0.0
        self._is_stopping = self._is_stopping or is_orphan(self._parent_pid)


def _failed(request: Generate, words: str, code: str | None = None) -> Tokens:
    return Tokens(
        request_id=request.request_id,
        token_ids=[],
        finish_reason="error",
        error=words,
        error_code=code,
    )


def _reason(failure: Exception, subject: str) -> str:
    """Return why something could not be loaded, in words; what is not foreseen is logged, too."""
    if isinstance(failure, QuickmatchError):
        return failure.message
    log.error("%s failed", subject, exc_info=failure)
    return f"{subject}: {type(failure).__name__}: {failure}"


def serve(config: EngineConfig, channel: EngineEnd, parent_pid: int) -> int:
    """Load the model, then run the loop; return the exit status."""
    started = monotonic()
    gc.disable()  # collections while torch is read take an eighth of that time
    try:
        read_model_config(resolve_model(config.model))  # a wrong folder is told before torch loads
        from quickmatch.engine.runner import ModelRunner

        runner = ModelRunner(config)
        runner.warm_up()
    except QuickmatchError as error:
        channel.send([LoadFailed(message=error.message)])
        return 2
    except Exception as error:  # process boundary
        log.exception("loading %s failed", config.model)
        channel.send([LoadFailed(message=f"{config.model}: {type(error).__name__}: {error}")])
        return 2
    engine = Engine(runner, config)
    if engine.speculator is not None:
        engine.speculator.measure_costs(config.max_num_seqs)
    gc.freeze()  # all of this stays; no later collection has to walk it
    gc.enable()
    channel.send([_ready(runner, load_s=monotonic() - started)])
    return EngineLoop(engine, channel, parent_pid, max_waiting=config.max_queue_len).run()


def _ready(runner: Any, *, load_s: float) -> Ready:
    return Ready(
        pid=os.getpid(),
        max_model_len=runner.max_model_len,
        vocab_size=runner.vocab_size,
        model_bytes=runner.model_bytes,
        kv_bytes=runner.kv_bytes,
        num_blocks=runner.num_blocks,
        block_size=runner.block_size,
        load_s=load_s,
        device=str(runner.device),
        dtype=str(runner.dtype).removeprefix("torch."),
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="quickmatch.engine.process")
    parser.add_argument("--config", required=True, help="EngineConfig as JSON")
    parser.add_argument("--endpoint", required=True, help="ipc:// address that the fleet has bound")
    parser.add_argument("--parent-pid", type=int, default=os.getppid(), help="whose end is ours")
    arguments = parser.parse_args(argv)
    tie_to_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the fleet's to handle
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s engine[%(process)d] %(message)s"
    )
    if is_orphan(arguments.parent_pid):
        return 0
    config = msgspec.json.decode(arguments.config, type=EngineConfig)
    channel = EngineEnd(arguments.endpoint)
    try:
        return serve(config, channel, arguments.parent_pid)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # no second exit amid the first
        channel.close()


if __name__ == "__main__":
    sys.exit(main())
