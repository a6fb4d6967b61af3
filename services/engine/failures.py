"""Errors across processes: `ParleyError` here, `wire.Failed` on the way."""

from __future__ import annotations

from services.errors import ParleyError, from_code
from services.wire import Failed


def error_of(failed: Failed) -> ParleyError:
    return from_code(failed.code, failed.message, failed.retry_after, **failed.details)


def failed_of(error: ParleyError) -> Failed:
    return Failed(code=error.code, message=error.message, retry_after=error.retry_after, details=error.told())
