"""One request's tokens between the client's reader and whoever consumes them.

A fast engine never waits for a slow consumer: what arrives is queued, and a consumer that comes
late takes all of it in one piece. The queue needs no bound, max_tokens is one.
"""

import asyncio

from quickmatch.core.errors import QuickmatchError
from quickmatch.engine.wire import Tokens


def join(pieces: list[Tokens]) -> Tokens:
    """Return consecutive pieces of one request as one."""
    if len(pieces) == 1:
        return pieces[0]
    first, last = pieces[0], pieces[-1]
    return Tokens(
        request_id=first.request_id,
        token_ids=[token_id for piece in pieces for token_id in piece.token_ids],
        logprobs=[entry for piece in pieces for entry in piece.logprobs],
        finish_reason=last.finish_reason,
        num_cached_tokens=first.num_cached_tokens,
        error=last.error,
        error_code=last.error_code,
        queue_s=first.queue_s,
        num_accepted_prediction_tokens=sum(p.num_accepted_prediction_tokens for p in pieces),
        num_rejected_prediction_tokens=sum(p.num_rejected_prediction_tokens for p in pieces),
    )


class TokenStream:
    """A queue with one producer and one consumer, both on the same event loop."""

    __slots__ = ("_error", "_pending", "_waiter")

    def __init__(self) -> None:
        self._pending: list[Tokens] = []
        self._error: QuickmatchError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, tokens: Tokens) -> None:
        """Add what arrived."""
        self._pending.append(tokens)
        self._wake()

    def fail(self, error: QuickmatchError) -> None:
        """Nothing more will arrive: raise `error` once what is here has been taken."""
        self._error = error
        self._wake()

    async def take(self) -> Tokens:
        """Wait for something, then return all of it."""
        while not self._pending:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        pending, self._pending = self._pending, []
        return join(pending)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
