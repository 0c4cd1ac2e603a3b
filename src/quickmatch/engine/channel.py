"""The two sockets between a fleet and one engine process: commands in, events out.

Owns: names, directions, encoding. The client binds both before it starts the process, the engine
connects. One direction a socket, PUSH to PULL, so that each end may read in its own way (the
client from an event loop, the engine between two steps) without the other direction in the way.

Each message is one frame; messages that are made together travel as one multipart, so that a step
costs one write and one wake-up, however many sequences it served. Queues are unbounded here,
because what fills them is bounded already: max_queue_len on one side, max_tokens on the other.
"""

import contextlib
import math
from collections.abc import Iterable

import zmq

from quickmatch.engine.wire import Command, Event, command_decoder, encoder, event_decoder

# Time for the last events to leave before the process ends.
_LINGER_MS = 1000


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.set_hwm(0)
    socket.setsockopt(zmq.LINGER, _LINGER_MS if kind == zmq.PUSH else 0)
    return socket


class EngineEnd:
    """The engine process's end. Connects; used by one thread."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._commands = _socket(self._context, zmq.PULL)
        self._events = _socket(self._context, zmq.PUSH)
        self._commands.connect(f"{endpoint}-commands")
        self._events.connect(f"{endpoint}-events")
        self._encode = encoder().encode
        self._decode = command_decoder().decode

    def receive(self, timeout_s: float) -> list[Command]:
        """Return all commands that are there; wait for the first at most `timeout_s`."""
        commands: list[Command] = []
        if not self._commands.poll(math.ceil(timeout_s * 1000)):
            return commands
        while True:
            try:
                frames = self._commands.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return commands
            commands.extend(self._decode(frame) for frame in frames)

    def send(self, events: Iterable[Event]) -> None:
        """Send events, in order. Never blocks."""
        frames = [self._encode(event) for event in events]
        if frames:
            self._events.send_multipart(frames, zmq.NOBLOCK)

    def close(self) -> None:
        """Close after what was sent has left, or a second has passed."""
        self._context.destroy(linger=_LINGER_MS)


class ClientEnd:
    """The fleet's end. Binds; reads without waiting, so that an event loop can drive it."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._commands = _socket(self._context, zmq.PUSH)
        self._events = _socket(self._context, zmq.PULL)
        self._commands.bind(f"{endpoint}-commands")
        self._events.bind(f"{endpoint}-events")
        self._encode = encoder().encode
        self._decode = event_decoder().decode

    def fileno(self) -> int:
        """Return what an event loop watches. Edge-triggered: after a wake-up, read all."""
        return int(self._events.getsockopt(zmq.FD))

    def receive(self) -> list[Event]:
        """Return all events that are there, without waiting."""
        events: list[Event] = []
        while True:
            try:
                frames = self._events.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return events
            events.extend(self._decode(frame) for frame in frames)

    def send(self, command: Command) -> None:
        """Send one command. Never blocks; what a dead engine does not read is dropped.

        The engine's end may be gone before its process is known to be: whoever waits for an
        answer hears of it from the process's watcher.
        """
        with contextlib.suppress(zmq.Again):
            self._commands.send(self._encode(command), zmq.NOBLOCK)

    def close(self) -> None:
        """Close at once."""
        self._context.destroy(linger=0)
