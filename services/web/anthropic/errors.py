"""Errors in the words of Anthropic's API: the one envelope, with the types that its clients tell errors by."""

from __future__ import annotations

from typing import Any

from services.errors import ParleyError

_BY_STATUS = {404: "not_found_error", 408: "timeout_error", 409: "conflict_error", 413: "request_too_large",
              503: "overloaded_error", 504: "timeout_error"}


def envelope(error: ParleyError) -> dict[str, Any]:
    """`error` as `{"type": "error", "error": {"type", "message", "details": {"error_code"}, ...}, ...}`."""
    plain = error.envelope()
    kind = "api_error" if error.type == "server_error" else error.type
    inner = {**plain["error"], "type": _BY_STATUS.get(error.status, kind), "details": {"error_code": error.code}}
    return {"type": "error", **plain, "error": inner}


def event(error: ParleyError) -> dict[str, Any]:
    """`error` as the last event of a stream."""
    return {"type": "error", "error": envelope(error)["error"]}
