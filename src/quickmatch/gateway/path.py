"""The path of a request: parse → route → exact cache → backend → meter → cache → trace.

`CallPath.answer` is the whole of it. Everything it calls is elsewhere: what a body means
(convert), where a call goes (fleet), how an answer looks (render) and leaves (reply).
Invariant: every request is counted once, with the status that its caller saw; nothing is cached
but complete answers; a recorded trace holds what was sent.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from prometheus_client import Counter
from starlette.types import Receive, Scope, Send

from quickmatch.caching import ExactCache, cache_key, is_deterministic
from quickmatch.core.call import Call, Endpoint
from quickmatch.core.clock import wall
from quickmatch.core.completion import Completion, Delta, Usage
from quickmatch.core.errors import QuickmatchError, StoreError, Unavailable
from quickmatch.fleet import Fleet, Route
from quickmatch.fleet.merge import merge
from quickmatch.gateway.assemble import Assembler
from quickmatch.gateway.auth import identify
from quickmatch.gateway.behind import Behind
from quickmatch.gateway.connection import header_map, read_body, while_connected
from quickmatch.gateway.convert import ApiRequest, parse
from quickmatch.gateway.errors import ClientGone, RequestTimeout, error_response, internal_error
from quickmatch.gateway.meter import Meter
from quickmatch.gateway.record import make_trace
from quickmatch.gateway.render import Renderer
from quickmatch.gateway.reply import Reply, StreamReply, WholeReply
from quickmatch.observe import Metrics, TraceWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSettings:
    """Bounds of one request."""

    max_body_bytes: int = 16 << 20
    request_timeout_s: float = 600.0


@dataclass(slots=True)
class Lookup:
    """What the exact cache said about one call. `key` is None where it must not be kept."""

    call: Call
    key: str | None = None
    found: Completion | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """Everything about one request under way."""

    request: ApiRequest
    route: Route
    lookups: list[Lookup]
    renderer: Renderer
    reply: Reply
    assembler: Assembler
    meter: Meter


class CallPath:
    """Answers requests. One for all; it keeps nothing about a request between two of them."""

    def __init__(
        self,
        fleet: Fleet,
        cache: ExactCache | None,
        metrics: Metrics,
        traces: TraceWriter,
        behind: Behind,
        settings: PathSettings,
    ) -> None:
        self._fleet = fleet
        self._cache = cache
        self._metrics = metrics
        self._traces = traces
        self._behind = behind
        self._settings = settings

    async def serve(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, whatever happens."""
        meter = Meter(self._metrics)
        try:
            headers = header_map(scope)
            body = await read_body(receive, self._settings.max_body_bytes)
            request = parse(endpoint, body, headers, identify(headers))
            await while_connected(receive, self.answer(request, send, meter))
        except ClientGone:
            meter.hung_up()
        except QuickmatchError as error:
            meter.failed(error)
            await error_response(error)(scope, receive, send)
        except Exception as error:  # the boundary: a fault of ours must not end the server
            told = internal_error(error)
            meter.failed(told)
            await error_response(told)(scope, receive, send)
        finally:
            meter.close()

    async def answer(self, request: ApiRequest, send: Send, meter: Meter) -> None:
        """Answer a parsed request. Raises QuickmatchError while nothing has been sent."""
        with self._fleet.resolve(request.model).lease() as route:
            meter.routed(route.model)
            lookups = [await self._look_up(call, request, route) for call in request.calls]
            meter.looked_up(_cache_word(lookups))
            work = _begin(request, route, lookups, send, meter)
            try:
                async with asyncio.timeout(self._settings.request_timeout_s):
                    await self._run(work)
                self._keep(work)
                completion = work.assembler.whole()
                await work.reply.end(completion)
                meter.succeeded(completion.usage)
            except asyncio.CancelledError:
                meter.hung_up()
                raise
            except Exception as error:
                meter.failed(told := self._told(error))
                if not work.reply.has_started:
                    raise told from error
                await work.reply.fail(told)
            finally:
                self._trace(work)

    async def _run(self, work: Work) -> None:
        try:
            await self._attempt(work)
        except Unavailable:
            # An answer that has not begun the backend has tried again itself.
            if work.reply.has_started or not work.assembler.has_begun:
                raise
            work.assembler.clear()  # nothing was sent, so the restarted engine may begin anew
            await self._attempt(work)

    async def _attempt(self, work: Work) -> None:
        """Pass on what the backend, or the cache, yields for each call."""
        route, n = work.route, work.request.n
        targets = [route.target() for _ in work.lookups]
        sources = [
            _replay(lookup.found) if lookup.found else route.backend.stream(lookup.call, target)
            for lookup, target in zip(work.lookups, targets, strict=True)
        ]
        async with aclosing(merge(sources)) as items:
            async for number, item in items:
                work.assembler.add(number, item)
                if isinstance(item, Delta):
                    work.meter.saw(item)
                    numbered = replace(item, index=number * n + item.index) if number else item
                    await work.reply.add(numbered)
        work.meter.queued([target.notes.queue_s for target in targets])

    async def _look_up(self, call: Call, request: ApiRequest, route: Route) -> Lookup:
        policy = request.cache
        may_keep = policy.nondeterministic or is_deterministic(call.sampling)
        if self._cache is None or not may_keep or not (policy.read or policy.write):
            return Lookup(call)
        key = cache_key(call, route.weights.fingerprint)
        lookup = Lookup(call, key if policy.write else None)
        if policy.read:
            lookup.found = self._cache.get_front(key)
            if lookup.found is None:
                lookup.found = await asyncio.to_thread(self._cache.get, key)
            self._counter(lookup.found).labels(route.model).inc()
        return lookup

    def _counter(self, found: Completion | None) -> Counter:
        return self._metrics.exact_cache_misses if found is None else self._metrics.exact_cache_hits

    def _keep(self, work: Work) -> None:
        """Put new complete answers into the cache: memory now, the store behind our back."""
        for number, lookup in enumerate(work.lookups):
            if self._cache is None or lookup.key is None or lookup.found is not None:
                continue
            entry = self._cache.hold(
                lookup.key,
                work.assembler.completion(number),
                tenant=lookup.call.tenant,
                version_id=work.route.version_id,
            )
            if entry is not None:
                self._behind.run(self._cache.write, entry)

    def _trace(self, work: Work) -> None:
        wish = work.request.trace
        if work.route.trace if wish is None else wish:
            completion = work.assembler.whole()
            trace = make_trace(work.request, work.route, work.renderer, completion, work.meter)
            self._traces.record(trace)

    def _told(self, error: Exception) -> QuickmatchError:
        if isinstance(error, TimeoutError):
            limit_s = self._settings.request_timeout_s
            return RequestTimeout(
                f"the answer was not complete after {limit_s:g} s; lower max_tokens"
            )
        if isinstance(error, StoreError) or not isinstance(error, QuickmatchError):
            return internal_error(error)
        return error


async def _replay(completion: Completion) -> AsyncGenerator[Delta | Usage, None]:
    """Yield a kept answer as a backend would."""
    for choice in completion.choices:
        yield Delta(
            choice.index, choice.text, choice.token_ids, choice.logprobs, choice.finish_reason
        )
    # Nothing was drafted this time, and this caller may have sent another prediction, or none.
    yield replace(completion.usage, accepted_prediction_tokens=0, rejected_prediction_tokens=0)


def _cache_word(lookups: list[Lookup]) -> str:
    if all(lookup.found is not None for lookup in lookups):
        return "hit"
    return "miss" if any(lookup.key is not None for lookup in lookups) else "bypass"


def _headers(request: ApiRequest, route: Route, cache: str) -> dict[str, str]:
    return {
        "x-quickmatch-cache": cache,
        "x-quickmatch-model-version": route.version_id,
        "x-quickmatch-trace-id": request.trace_id,
    }


def _begin(
    request: ApiRequest, route: Route, lookups: list[Lookup], send: Send, meter: Meter
) -> Work:
    renderer = Renderer(request, route.version_id, wall())
    headers = _headers(request, route, meter.cache)
    reply: Reply = WholeReply(send, renderer, headers)
    if request.stream:
        reply = StreamReply(send, renderer, headers, include_usage=request.include_usage)
    assembler = Assembler(len(request.calls), request.n)
    return Work(request, route, lookups, renderer, reply, assembler, meter)
