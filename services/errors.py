"""Every error that a client, an operator or a script can meet.

An error class carries its HTTP status, its machine `code` and OpenAI's `type`; `envelope()` is the one shape
that leaves the server. Commands print `message` on one line. Nothing here knows of HTTP libraries.
"""

from __future__ import annotations

from typing import Any


class ParleyError(Exception):
    """Base of all errors that are told to a person. `message` says what was wrong, what was expected and what to do."""

    status = 500
    code = "internal_error"
    type = "server_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None,
                 retry_after: float | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.retry_after = retry_after      # seconds; becomes the header Retry-After, rounded up
        self.details = details              # further fields of `error`, e.g. token counts

    def told(self) -> dict[str, Any]:
        """What `from_code` takes beside code, message and retry_after: `details`, with `param` where there is one."""
        return {**self.details, **({"param": self.param} if self.param else {})}

    def envelope(self) -> dict[str, Any]:
        """`{"message", "error": {"message", "type", "code", "param", ...}}`: the seed's shape and OpenAI's in one."""
        error = {"message": self.message, "type": self.type, "code": self.code, "param": self.param, **self.details}
        return {"message": self.message, "error": error}


class BadRequest(ParleyError):
    status, code, type = 400, "invalid_request", "invalid_request_error"


class ContextOverflow(BadRequest):
    """The new text alone does not fit the context window. `details`: prompt_tokens, limit, n_ctx."""

    code = "context_length_exceeded"


class BadSchema(BadRequest):
    """A JSON Schema that a completion cannot be held to: invalid, remote, too large, or with an unsupported keyword."""

    code = "bad_schema"


class BadGrammar(BadSchema):
    """A grammar that a completion cannot be held to: invalid, too large, or one that goes round in circles."""

    code = "bad_grammar"


class NoInfill(BadRequest):
    """A text with a gap was given to a model that was not trained to fill one."""

    code = "no_infill"


class Unauthorized(ParleyError):
    status, code, type = 401, "unauthorized", "authentication_error"


class Forbidden(ParleyError):
    status, code, type = 403, "forbidden", "permission_error"


class NotFound(ParleyError):
    status, code, type = 404, "not_found", "invalid_request_error"


class MethodNotAllowed(ParleyError):
    status, code, type = 405, "method_not_allowed", "invalid_request_error"


class Conflict(ParleyError):
    status, code, type = 409, "conflict", "invalid_request_error"


class NoRoom(Conflict):
    """A model does not fit beside those that stay. `details`: needed, budget (bytes), loaded (what would have to go:
    model, memory_bytes, users), n_ctx (the largest that fits, or None)."""

    code = "no_room"


class SessionBusy(Conflict):
    code = "session_busy"


class Gone(ParleyError):
    """The session was deleted while it was in use, or its file is damaged and set aside."""

    status, code, type = 410, "gone", "invalid_request_error"


class PreconditionFailed(ParleyError):
    """What a request was to change is not as it expects."""

    status, code, type = 412, "precondition_failed", "invalid_request_error"


class TooLarge(ParleyError):
    status, code, type = 413, "too_large", "invalid_request_error"


class UnsupportedMedia(ParleyError):
    status, code, type = 415, "unsupported_media_type", "invalid_request_error"


class Misdirected(ParleyError):
    """The request is for a name that is not this server's."""

    status, code, type = 421, "misdirected", "invalid_request_error"


class Unprocessable(ParleyError):
    """Well-formed, but cannot be done: a model file that cannot be loaded, for one."""

    status, code, type = 422, "unprocessable", "invalid_request_error"


class BadModel(Unprocessable):
    code = "bad_model"


class OutOfMemory(Unprocessable):
    """The model, its context and its slots need more memory than is free. `details`: needed, available (bytes)."""

    code = "out_of_memory"


class TooManyRequests(ParleyError):
    status, code, type = 429, "rate_limited", "rate_limit_error"


class QuotaSpent(TooManyRequests):
    """A key's budget of tokens is spent until its next period, or for good."""

    code, type = "insufficient_quota", "insufficient_quota"


class FetchFailed(ParleyError):
    """Another server, which a page was to be fetched from, did not answer, or not with what can be used."""

    status, code, type = 502, "fetch_failed", "server_error"


class Unavailable(ParleyError):
    """Queue full, model loading, runner down, store unwritable, draining. Always with `retry_after`."""

    status, code, type = 503, "unavailable", "server_error"

    def __init__(self, message: str, **kwargs: Any) -> None:
        kwargs.setdefault("retry_after", 5)
        super().__init__(message, **kwargs)


class RunnerCrashed(Unavailable):
    code = "runner_crashed"


class DeadlineExceeded(ParleyError):
    status, code, type = 504, "deadline_exceeded", "server_error"


class StorageFull(ParleyError):
    status, code, type = 507, "storage_full", "server_error"


class ConfigError(ParleyError):
    """A setting, `config.json` or a key file that cannot be used: ends the start with one line."""

    status, code = 500, "bad_config"


def all_classes(base: type[ParleyError] = ParleyError) -> list[type[ParleyError]]:
    """`base` and every class below it, parents first."""
    return [base, *(found for sub in base.__subclasses__() for found in all_classes(sub))]


def from_code(code: str, message: str, retry_after: float | None = None, **details: Any) -> ParleyError:
    """The error that another process reported as `code` (see `services.wire.Failed`), as the class that carries it."""
    for cls in reversed(all_classes()):
        if cls.code == code:
            return cls(message, retry_after=retry_after, **details) if retry_after else cls(message, **details)
    if retry_after:         # only what may be tried again carries one: a code of its own, such as "draining"
        return Unavailable(message, code=code, retry_after=retry_after, **details)
    return ParleyError(message, code=code, **details)
