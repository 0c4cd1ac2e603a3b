"""A trace of one call: the document that opted-in traffic is recorded as.

Owns what is in it. Recording is off unless the deployment or the caller asks for it.
Invariant: `request` is the body as it was sent, `response` the whole answer, also for streams;
one of them is missing only where the call failed before an answer began.
"""

from typing import Literal, cast

import msgspec

from quickmatch.core.clock import wall
from quickmatch.core.completion import Completion
from quickmatch.fleet import Route
from quickmatch.gateway.convert import ApiRequest
from quickmatch.gateway.meter import Meter
from quickmatch.gateway.render import Renderer, usage_json
from quickmatch.store.documents import Trace


def make_trace(
    request: ApiRequest, route: Route, renderer: Renderer, completion: Completion, meter: Meter
) -> Trace:
    """Return the trace of an answered, failed or broken-off request."""
    has_answer = meter.status == 200 or any(choice.text for choice in completion.choices)
    # Through JSON once: enums and tuples become what a store can keep.
    response = msgspec.json.encode(renderer.whole(completion)) if has_answer else None
    return Trace(
        id=request.trace_id,
        created_at=wall(),
        trace_id=request.trace_id,
        tenant=request.tenant,
        endpoint=request.endpoint,
        model=request.model,
        model_version=route.version_id,
        deployment=route.deployment,
        request=msgspec.json.decode(request.raw),
        response=None if response is None else msgspec.json.decode(response),
        usage=usage_json(completion.usage),
        timings=meter.timings(),
        cache=cast("Literal['hit', 'miss', 'bypass']", meter.cache),
        stream=request.stream,
        tags=request.tags,
        status=meter.status,
        error=meter.error,
    )
