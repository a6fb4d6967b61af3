"""BYPASS_AUTHORIZATION: which requests without a key are let in, since they can only be of this machine's own user.

HOST is a loopback address then (`services.settings`), but others may still come by it: a reverse proxy here brings the
world in, and a page in the user's browser asks for whatever it likes, also under a name of its own that leads here
(DNS rebinding).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from services.errors import Unauthorized
from services.settings import is_loopback

PROXIES = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP", "HTTP_X_CLIENT_IP", "HTTP_TRUE_CLIENT_IP",
           "HTTP_CF_CONNECTING_IP")
_HOST = re.compile(r"(localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_OWN = ("same-origin", "none")      # of Sec-Fetch-Site: a page of ours, and an address that the user typed


def check(environ: Mapping[str, Any], code: str) -> None:
    """`Unauthorized` with `code` for a request that needs a key all the same; its hint says why."""
    for why in _doubts(environ):
        raise Unauthorized("Unauthorized", code=code, hint=f"BYPASS_AUTHORIZATION does not count {why}; send a key in "
                                                           "the header Authorization: Bearer <key>")


def _doubts(environ: Mapping[str, Any]) -> Iterator[str]:
    if not is_loopback(environ.get("REMOTE_ADDR") or ""):
        yield "for other machines"
    if any(name in PROXIES or name.startswith("HTTP_X_FORWARDED") for name in environ):
        yield "for what a proxy passes on"
    if environ.get("SERVER_PROTOCOL") == "HTTP/1.0":        # all that nginx tells of itself, where nobody says more
        yield "for HTTP/1.0, which proxies speak"
    host = environ.get("HTTP_HOST", "")
    if not _HOST.fullmatch(host):
        yield "for this Host: expected localhost or a loopback address"
    origin = environ.get("HTTP_ORIGIN")
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in _OWN or origin not in (None, f"http://{host}"):
        yield "for pages from elsewhere"
