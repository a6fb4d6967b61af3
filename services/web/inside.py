"""A door for the server's own processes: requests that jobs ask are answered by the very routes that clients ask.

What comes in here has no secret: it says whose it is, in a part of the WSGI environment that no client can set.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from auth.gate import INSIDE
from services.errors import Unavailable
from services.jobs.requests import Reply, Request
from services.settings import Settings
from services.web.watch import CHECK, ClientGone

if TYPE_CHECKING:
    from flask import Flask


class Inside:
    """A `jobs.requests.Door`. Any thread may ask; the application is made at the first request."""

    def __init__(self, settings: Settings, control: str, authkey: bytes) -> None:
        self._made = (settings, control, authkey)
        self._lock = threading.Lock()
        self._app: Flask | None = None

    def __call__(self, asked: Request, check: Callable[[], None]) -> Reply:
        def watch() -> None:
            try:
                check()
            except Exception:
                raise ClientGone from None      # so the answer ends as for any client that leaves
        headers = {"Idempotency-Key": asked.retry} if asked.retry else {}
        response = self._application().test_client(use_cookies=False).post(
            asked.path, json=asked.body, headers=headers, environ_overrides={INSIDE: asked.key, CHECK: watch})
        check()
        after = response.headers.get("Retry-After")
        return Reply(response.status_code, _body(response.data), response.headers.get("X-Request-ID", ""),
                     float(after) if after else None)

    def _application(self) -> Flask:
        from services.web.app import build_parts, create_app
        with self._lock:
            if self._app is None:
                settings, control, authkey = self._made
                self._app = create_app(settings, build_parts(settings, control, authkey))
            return self._app


def _body(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        raise Unavailable("the answer was cut short", retry_after=1) from None
