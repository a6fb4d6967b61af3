"""Calls of a platform's API: with deadlines, again when it asks to wait or fails for a moment, never elsewhere."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import httpx

from services.errors import ParleyError

TIMEOUT = 10.0              # seconds for a connection, and for each silence after that
PAUSES = (0.5, 2.0, 5.0)    # seconds before each further try, where the platform does not say
LONGEST_PAUSE = 60.0        # that a platform may ask for
STEP = 0.25                 # seconds between two looks at whether the server stops
MOST_BYTES = 1 << 16        # of a reply
AGENT = "DiscordBot (Parley, 1)"        # in the form without which Discord refuses a call; others do not mind
log = logging.getLogger("parley.bindings")


class Undelivered(ParleyError):
    """A platform did not take a message."""

    status, code = 502, "undelivered"


class Post:
    """Any thread may send. `over`: whether the server stops, so that waiting is in vain. `sleep` is for tests."""

    def __init__(self, over: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> None:
        self._over, self._sleep = over, sleep

    @functools.cached_property
    def _client(self) -> httpx.Client:
        return httpx.Client(timeout=TIMEOUT, follow_redirects=False, headers={"User-Agent": AGENT})

    def send(self, method: str, url: str, body: Mapping[str, Any], *, token: str | None = None,
             again: Collection[int] = ()) -> bytes:
        """The reply to `body` as JSON; raises `Undelivered`. What the platform asks to send later, and what fails for
        a moment (5xx, no connection, a status of `again`), is tried again a few times; what may have arrived is not."""
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        content = json.dumps(body).encode()
        host = httpx.URL(url).host
        for pause in (*PAUSES, None):
            try:
                status, reply, wait = self._once(method, url, content, headers)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                status, wait, why = 0, None, f"{host} cannot be reached ({type(error).__name__})"
            except httpx.HTTPError as error:
                raise Undelivered(f"{host} did not answer as expected ({type(error).__name__}): whether the message "
                                  "arrived is not known, so it is not sent again") from None
            else:
                if 200 <= status < 300:
                    return reply
                why = f"{host} answers with HTTP {status}"
            passing = status == 0 or status == 429 or status >= 500 or status in again
            wait = pause if wait is None else wait
            if not passing or pause is None or wait is None or wait > LONGEST_PAUSE:
                raise Undelivered(f"{why}: given up")
            log.info("%s: trying again in %.1f s", why, wait)
            self._wait(wait)
        raise AssertionError("the last try raises")

    def _once(self, method: str, url: str, content: bytes,
              headers: Mapping[str, str]) -> tuple[int, bytes, float | None]:
        """(status, the reply's first bytes, seconds that it asks to wait)."""
        with self._client.stream(method, url, content=content, headers=headers) as response:
            reply = b""
            for part in response.iter_bytes():
                reply += part
                if len(reply) > MOST_BYTES:
                    break
            return response.status_code, reply[:MOST_BYTES], _seconds(response.headers.get("Retry-After"))

    def _wait(self, seconds: float) -> None:
        while seconds > 0:
            if self._over():
                raise Undelivered("the server stops: the message is not tried again")
            self._sleep(min(seconds, STEP))
            seconds -= STEP


def _seconds(text: str | None) -> float | None:
    """What Retry-After asks for; None where it is no number of seconds."""
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return None
