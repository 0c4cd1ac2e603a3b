"""One request's clock and counters: from its arrival to the metrics and the trace's timings.

Invariant: `close` counts the request exactly once, under the status that its caller saw.
"""

from quickmatch.core.clock import Clock, monotonic
from quickmatch.core.completion import Delta, Usage
from quickmatch.core.errors import QuickmatchError
from quickmatch.gateway.errors import CLIENT_GONE
from quickmatch.observe import Metrics
from quickmatch.store.documents import Timings

UNROUTED = "(none)"  # label of requests that never reached a model: callers' text is no label


class Meter:
    """Made when a request arrives."""

    def __init__(self, metrics: Metrics, *, clock: Clock = monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._began = clock()
        self._first_token: float | None = None
        self._last_token = self._began
        self._usage = Usage()
        self._queue_s: float | None = None
        self.model = UNROUTED
        self.cache = "bypass"
        self.status = 200
        self.error = ""
        metrics.in_flight.inc()

    def routed(self, model: str) -> None:
        """The request goes to this model."""
        self.model = model

    def looked_up(self, cache: str) -> None:
        """The exact cache has been asked: hit, miss or bypass."""
        self.cache = cache

    def saw(self, delta: Delta) -> None:
        """A piece of the answer has come."""
        if delta.text or delta.token_ids:
            self._last_token = self._clock()
            if self._first_token is None:
                self._first_token = self._last_token

    def queued(self, waits: list[float | None]) -> None:
        """Take the backends' notes on waiting; the longest counts."""
        known = [wait for wait in waits if wait is not None]
        self._queue_s = max(known, default=None)

    def succeeded(self, usage: Usage) -> None:
        """The whole answer has been sent."""
        self._usage = usage

    def failed(self, error: QuickmatchError) -> None:
        """The caller gets this error."""
        self.status, self.error = error.status, error.message

    def hung_up(self) -> None:
        """The caller has gone."""
        self.status, self.error = CLIENT_GONE, "the caller hung up"

    def timings(self) -> Timings:
        """Return the milliseconds so far, for the trace."""
        ttft = self._first_token
        return Timings(
            queue_ms=None if self._queue_s is None else self._queue_s * 1e3,
            ttft_ms=None if ttft is None else (ttft - self._began) * 1e3,
            total_ms=(self._clock() - self._began) * 1e3,
        )

    def close(self) -> None:
        """Count the request."""
        metrics, model, status = self._metrics, self.model, str(self.status)
        metrics.in_flight.dec()
        metrics.requests.labels(model, status).inc()
        if self.status != 200:
            metrics.errors.labels(model, status).inc()
            return
        metrics.latency_s.labels(model, self.cache).observe(self._clock() - self._began)
        if self.cache == "hit":  # nothing was computed
            return
        usage = self._usage
        metrics.prompt_tokens.labels(model).inc(usage.prompt_tokens)
        metrics.cached_prompt_tokens.labels(model).inc(usage.cached_tokens)
        metrics.completion_tokens.labels(model).inc(usage.completion_tokens)
        if self._queue_s is not None:
            metrics.queue_s.labels(model).observe(self._queue_s)
        if self._first_token is None:
            return
        metrics.ttft_s.labels(model).observe(self._first_token - self._began)
        if usage.completion_tokens > 1:
            mean_s = (self._last_token - self._first_token) / (usage.completion_tokens - 1)
            metrics.tpot_s.labels(model).observe(mean_s)
