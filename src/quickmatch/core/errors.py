"""Every error that a user can meet, with the HTTP status and the OpenAI error type it maps to.

A message says what happened, the value seen, and the remedy. The gateway maps these to OpenAI
error JSON in one place; the command line prints the message as one line and exits 2.
"""


class QuickmatchError(Exception):
    """Base of all errors that are shown to users. `status` is HTTP, `code` is OpenAI's."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(QuickmatchError):
    """The caller's request cannot be served as it stands."""

    status = 400
    type = "invalid_request_error"


class ContextTooLong(InvalidRequest):
    """Prompt and requested completion do not fit the model's context."""

    code = "context_length_exceeded"


class NotFound(QuickmatchError):
    """A model, dataset, job, deployment or trace of that name does not exist."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """No deployment serves the model that was asked for."""

    code = "model_not_found"


class Conflict(QuickmatchError):
    """The name is taken, or the thing is in a state that does not allow the action."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class Overloaded(QuickmatchError):
    """The queue is full. `retry_after_s` is sent as Retry-After."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(QuickmatchError):
    """The engine behind a deployment is down or not ready yet; a retry may succeed."""

    status = 503
    type = "server_error"
    code = "engine_unavailable"


class UpstreamError(QuickmatchError):
    """A remote provider failed or answered something that is not an OpenAI response."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"


class ConfigError(QuickmatchError):
    """A setting, a flag or a file named by one is wrong. Raised before anything is created."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_configuration"


class ModelLoadError(ConfigError):
    """A model folder or adapter cannot be loaded: part missing, truncated, unsupported."""

    code = "model_load_failed"


class DatasetError(ConfigError):
    """A dataset line is wrong. The message carries the file, the line number and the reason."""

    code = "invalid_dataset"


class StoreError(QuickmatchError):
    """The store cannot be read or written: full disk, locked or damaged file."""

    code = "store_failed"
