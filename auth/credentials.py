"""Finding the key in a request: `Authorization: <key>`, `Authorization: Bearer <key>` or `X-API-Key: <key>`.

Nowhere else: not in the address, not in cookies. A JSON Web Token may stand in the place of a key. Works on header
values as WSGI gives them, for HTTP and for a websocket's handshake alike.
"""

from __future__ import annotations

import hmac
import re
from urllib.parse import parse_qsl

from auth.authentication import KEY_PATTERN
from auth.records import MAX_SECRET_BYTES
from services.errors import BadRequest, Unauthorized

HOW = "send the key in the header Authorization: Bearer <key>"
UNKNOWN = "this key is unknown, revoked or expired; `main.py keys list` on the server shows those there are"
QUERY_NAMES = {"api_key", "apikey", "api-key", "x-api-key", "access_token", "authorization", "key", "token",
               "jwt"}
MAX_TOKEN_BYTES = 8192                  # a longer JSON Web Token is none; gunicorn takes no longer header either
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")
_BEARER = re.compile(r"\Abearer(?:[ \t]+|$)", re.IGNORECASE)


def credential(authorization: str | None, x_api_key: str | None) -> bytes | None:
    """The one secret that the two headers carry; None when there is none at all.

    Unauthorized for what cannot be a key, BadRequest for two different ones: which of them counts would be a guess.
    """
    found = [] if authorization is None else [_BEARER.sub("", authorization.strip(" \t"), count=1)]
    if x_api_key is not None:
        found.append(x_api_key)
    secrets = [_checked(value.strip(" \t")) for value in found]
    if len(secrets) == 2 and not hmac.compare_digest(*secrets):
        raise BadRequest(f"Authorization and X-API-Key carry two different keys; {HOW} only",
                         code="conflicting_credentials")
    return secrets[0] if secrets else None


def _checked(value: str) -> bytes:
    too_long = len(value) > MAX_SECRET_BYTES and not looks_like_token(value)
    if not value or too_long or not value.isascii() or not value.isprintable():
        raise Unauthorized("Unauthorized", hint=HOW)
    return value.encode("ascii")


def looks_like_token(value: str) -> bool:
    """Whether `value` has the form of a signed JSON Web Token: three parts in base64url (RFC 7515, 3.1)."""
    return len(value) <= MAX_TOKEN_BYTES and _TOKEN.fullmatch(value) is not None


def refuse_in_query(query: bytes) -> None:
    """BadRequest when a parameter is named like a key or holds one: addresses end up in logs. It is not echoed.

    Also for raw bytes that are not ASCII, which no later reader of the query could decode.
    """
    if not query.isascii():
        raise BadRequest("the query has characters that must be percent-encoded", code="bad_query")
    for name, value in parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="replace"):
        if name.strip().lower() in QUERY_NAMES or KEY_PATTERN.search(value) or KEY_PATTERN.search(name):
            raise BadRequest(f"a key does not belong in the address, where logs would keep it; {HOW}, and make a new "
                             "key if this one was real", code="key_in_query")
