"""What goes around every request: its id, the headers of every response, one error envelope, one log line."""

from __future__ import annotations

import json
import logging
import math
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException

from auth.authentication import KEY_PATTERN
from services import errors
from services.errors import ParleyError
from services.web.anthropic import errors as anthropic
from services.web.watch import ClientGone

log = logging.getLogger("parley.web")
access = logging.getLogger("parley.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
HEADERS = {                 # of every response
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_ANTHROPICS = ("/v1/messages", "/v1/messages/count_tokens")     # ends of paths that only its clients ask for
_CLIENT_GONE = 499      # told to the log only: nobody is left to read the response


@dataclass
class Trace:
    """What is logged of one request. Made at its start, finished when its response is closed."""

    id: str
    started: float = field(default_factory=time.monotonic)
    sent: int = 0           # bytes of body
    key: str = "-"
    status: int = 0


def install(app: Flask) -> None:
    """Hook `app` up; call before the gate, so that its refusals carry an id too."""
    app.before_request(_begin)
    app.after_request(_finish)
    app.register_error_handler(ParleyError, _on_parley_error)
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(ClientGone, _on_client_gone)
    app.register_error_handler(Exception, _on_surprise)


def json_response(value: Any, status: int = 200) -> Response:
    """`value` as JSON. Half a surrogate pair, should one ever get here, leaves as its escape."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode("utf-8", "backslashreplace"), status=status, mimetype="application/json")


def empty() -> Response:
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


def _begin() -> None:
    given = request.headers.get("X-Request-Id", "")
    g.trace = Trace(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)


def _finish(response: Response) -> Response:
    trace: Trace = g.trace
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["X-Request-Id"] = response.headers["Request-Id"] = trace.id      # OpenAI's name, Anthropic's
    trace.status = response.status_code
    if (key := g.get("key")) is not None:
        trace.key = key.id
    if not response.is_streamed:
        trace.sent = response.content_length or 0
    method, path, received = request.method, request.path, request.content_length or 0
    response.call_on_close(lambda: _log_access(trace, method, path, received))
    return response


def _log_access(trace: Trace, method: str, path: str, received: int) -> None:
    elapsed = (time.monotonic() - trace.started) * 1000
    access.info("id=%s key=%s %s %s %d %.1fms in=%d out=%d", trace.id, trace.key, method,
                KEY_PATTERN.sub("<key>", path)[:300], trace.status, elapsed, received, trace.sent)


def error_response(error: ParleyError) -> Response:
    """The envelope with its status; `Retry-After` in whole seconds on 429 and 503, as the contract says."""
    view = current_app.view_functions.get(request.endpoint or "")
    by_path = anthropic.envelope if request.path.endswith(_ANTHROPICS) else ParleyError.envelope
    envelope = getattr(getattr(view, "view_class", None), "envelope", by_path)
    response = json_response(envelope(error), error.status)
    if error.retry_after is not None or error.status in (429, 503):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or 1)))
    if isinstance(error, errors.QuotaSpent) or (error.status in (409, 504, 507) and error.retry_after is None):
        response.headers["X-Should-Retry"] = "false"        # OpenAI's and Anthropic's clients would try twice more
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _on_parley_error(error: ParleyError) -> Response:
    if error.status >= 500:     # 503 is an answer like others: /readyz may be asked every second
        level = logging.INFO if error.status == 503 else logging.WARNING
        log.log(level, "id=%s %s: %s", g.trace.id, error.code, error.message)
    return error_response(error)


def _on_http_exception(error: HTTPException) -> Response:
    """Flask's own refusals: unknown path, wrong method, and whatever else carries a status."""
    response = error_response(_as_parley(error))
    if allowed := getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _as_parley(error: HTTPException) -> ParleyError:
    if error.code == 404 and request.path.startswith("/v1/v1/"):
        return errors.NotFound("there is nothing at this path, which has /v1 twice: take one /v1 out of the base URL "
                               "that the client is given")
    if error.code == 404:
        return errors.NotFound("there is nothing at this path; GET /docs shows what there is")
    if error.code == 405:
        allowed = " or ".join(sorted(set(getattr(error, "valid_methods", None) or []) - {"HEAD"}))
        return errors.MethodNotAllowed(f"{request.method[:20]} is not possible here; use {allowed}")
    by_status = {cls.status: cls for cls in reversed(errors.all_classes()) if cls.status < 500}
    if error.code in by_status:
        return by_status[error.code](error.description or error.name)
    return ParleyError("the request could not be handled")


def as_error(error: Exception) -> ParleyError:
    """`error` as something that may be told to a client. A surprise is logged whole and told as nothing but its id."""
    if isinstance(error, ParleyError):
        return error
    log.error("id=%s unexpected %s", g.trace.id, type(error).__name__, exc_info=error)
    return ParleyError(f"internal error; the server's log says more under request id {g.trace.id}")


def _on_client_gone(_: ClientGone) -> Response:
    return Response(b"", status=_CLIENT_GONE)


def _on_surprise(error: Exception) -> Response:
    return error_response(as_error(error))
