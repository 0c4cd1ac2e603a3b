"""Errors on their way out: any exception as OpenAI error JSON with the right status.

Owns the one place where errors become HTTP. Invariant: every response that is not a success is
`{"error": {"message", "type", "param", "code"}}`, and no traceback ever leaves the server.
"""

import difflib
import logging
from typing import Any

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from quickmatch.core.errors import InvalidRequest, Overloaded, QuickmatchError, Unavailable

log = logging.getLogger(__name__)

CLIENT_GONE = 499  # the status that traces and metrics keep for a caller who hung up


class BodyTooLarge(InvalidRequest):
    """The request body is larger than the server takes."""

    status = 413
    code = "request_too_large"


class RequestTimeout(QuickmatchError):
    """The answer was not complete within the server's limit."""

    status = 504
    code = "request_timeout"


class ClientGone(Exception):
    """The caller hung up; there is nobody to answer."""


def error_body(error: QuickmatchError) -> dict[str, Any]:
    """Return OpenAI's error JSON."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: QuickmatchError) -> Response:
    """Return the whole response, with Retry-After where a retry may succeed."""
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(max(1, error.retry_after_s))
    elif isinstance(error, Unavailable):
        headers["Retry-After"] = "1"
    return Response(
        msgspec.json.encode(error_body(error)),
        status_code=error.status,
        headers=headers,
        media_type="application/json",
    )


def internal_error(error: Exception) -> QuickmatchError:
    """Log what nobody expected and return what the caller is told."""
    log.error("unexpected error", exc_info=error)
    return QuickmatchError("internal error; the server's log has the details")


async def not_found(request: Request, _: Exception) -> Response:
    """404 for a path that is not served."""
    error = InvalidRequest(f"no such path: {request.url.path}; the API is under /v1")
    error.status, error.code = 404, "not_found"
    return error_response(error)


async def method_not_allowed(request: Request, _: Exception) -> Response:
    """405 for a known path and the wrong method."""
    error = InvalidRequest(f"{request.method} is not allowed on {request.url.path}")
    error.status, error.code = 405, "method_not_allowed"
    response = error_response(error)
    response.headers["Allow"] = "GET" if request.method == "POST" else "POST"
    return response


async def quickmatch_error(_: Request, error: Exception) -> Response:
    """A QuickmatchError that a route raised."""
    assert isinstance(error, QuickmatchError)
    return error_response(error)


async def unexpected_error(_: Request, error: Exception) -> Response:
    """500 for everything else."""
    return error_response(internal_error(error))


def explain_invalid(error: ValidationError, body: type[BaseModel]) -> InvalidRequest:
    """Return pydantic's first complaint as one line a caller can act on."""
    complaints = error.errors(include_url=False)
    first = next((c for c in complaints if c["type"] == "extra_forbidden"), complaints[0])
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {first['ctx']['error']}")
    path = [str(part) for part in first["loc"]]
    # Unions add the tried type's name to the path ("prompt.list[int].0"); callers know fields.
    field = path[0] if path else "body"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, body.model_fields, n=1) if len(path) == 1 else []
        hint = f"did you mean {near[0]!r}?" if near else "remove it"
        return InvalidRequest(f"unknown field {'.'.join(path)!r}; {hint}", param=field)
    if first["type"] == "missing":
        return InvalidRequest(f"{'.'.join(path)} is missing; it is required", param=field)
    where = ".".join(part for part in path if "[" not in part)
    return InvalidRequest(f"{where or 'body'}: {first['msg']}, got {_short(first)}", param=field)


def _short(complaint: Any) -> str:
    text = repr(complaint.get("input"))
    return text if len(text) <= 80 else text[:77] + "…"
