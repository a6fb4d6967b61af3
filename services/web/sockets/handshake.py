"""The opening handshake of a websocket (RFC 6455, 4.2), and who may open one: checked before it is accepted."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from urllib.parse import urlsplit

from flask import Request, Response
from websockets.utils import accept_key

from services.errors import BadRequest, Forbidden, ParleyError

PORTS = {"http": 80, "https": 443}


class UpgradeRequired(ParleyError):
    """A plain request where only websockets are."""

    status, code, type = 426, "upgrade_required", "invalid_request_error"


def check(request: Request, allowed_origins: Sequence[str]) -> None:
    """Raises `UpgradeRequired`, `BadRequest` for a handshake that is none, `Forbidden` for a page from elsewhere."""
    if request.headers.get("Upgrade", "").strip().lower() != "websocket":
        raise UpgradeRequired("this address speaks websocket only: open it as ws://…; POST /gpt/<personality> answers "
                              "plain requests")
    if request.headers.get("Sec-WebSocket-Version", "").strip() != "13":
        raise BadRequest("Sec-WebSocket-Version: expected 13", code="bad_handshake")
    try:
        nonce = base64.b64decode(request.headers.get("Sec-WebSocket-Key", "").strip(), validate=True)
    except ValueError:
        nonce = b""
    if len(nonce) != 16:
        raise BadRequest("Sec-WebSocket-Key: expected 16 bytes in base64", code="bad_handshake")
    origins = request.headers.getlist("Origin")
    if origins and not (len(origins) == 1 and origin_allowed(origins[0], request.host, allowed_origins)):
        raise Forbidden("a page from elsewhere may not open this socket; ALLOWED_ORIGINS on the server lists those "
                        "that may", code="origin_forbidden")


def origin_allowed(origin: str, host: str, allowed: Sequence[str]) -> bool:
    """Whether a page of `origin` may come in: one of this very host and port, or of one of the `allowed`."""
    if origin.lower().rstrip("/") in allowed:
        return True
    try:
        page, here = urlsplit(origin), urlsplit(f"//{host}")
        ports = page.port or PORTS.get(page.scheme), here.port or PORTS.get(page.scheme)
    except ValueError:
        return False
    plain = page.scheme in PORTS and page.username is None and not (page.path or page.query or page.fragment)
    return plain and bool(page.hostname) and page.hostname == here.hostname and ports[0] == ports[1]


def response(request: Request) -> Response:
    """What accepts it. No subprotocol, no extension: no compression, so no bomb."""
    reply = Response(status=101)
    del reply.headers["Content-Type"]
    reply.headers["Upgrade"] = "websocket"
    reply.headers["Connection"] = "Upgrade"
    reply.headers["Sec-WebSocket-Accept"] = accept_key(request.headers["Sec-WebSocket-Key"].strip())
    return reply
