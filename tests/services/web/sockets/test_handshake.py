"""Who may open a websocket, and with what (row N9)."""

from __future__ import annotations

import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from services.errors import BadRequest, Forbidden
from services.web.sockets import handshake
from services.web.sockets.handshake import UpgradeRequired, origin_allowed

GOOD = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}


def request(**changes):
    headers = {**GOOD, **{name.replace("_", "-"): value for name, value in changes.items()}}
    given = [(name, value) for name, value in headers.items() if value is not None]
    return Request(EnvironBuilder(headers=given, base_url="http://chat.example:5000").get_environ())


def test_the_example_of_the_rfc_is_accepted():
    handshake.check(request(), ())
    reply = handshake.response(request())
    assert reply.status_code == 101
    assert reply.headers["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert "Sec-WebSocket-Extensions" not in reply.headers


@pytest.mark.parametrize("upgrade", [None, "", "h2c"])
def test_plain_request_is_told_what_to_do(upgrade):
    with pytest.raises(UpgradeRequired, match="ws://"):
        handshake.check(request(Upgrade=upgrade), ())


@pytest.mark.parametrize("changes", [
    {"Sec_WebSocket_Version": "8"}, {"Sec_WebSocket_Version": None}, {"Sec_WebSocket_Key": None},
    {"Sec_WebSocket_Key": "short"}, {"Sec_WebSocket_Key": "dGhlIHNhbXBsZQ=="}, {"Sec_WebSocket_Key": "é" * 24}])
def test_handshake_that_is_none_is_refused(changes):
    with pytest.raises(BadRequest):
        handshake.check(request(**changes), ())


@pytest.mark.parametrize("origin", ["http://chat.example:5000", "HTTP://CHAT.example:5000", "https://page.example"])
def test_page_from_here_or_one_that_is_listed_may(origin):
    handshake.check(request(Origin=origin), ("https://page.example",))


@pytest.mark.parametrize("origin", [
    "http://evil.example", "http://chat.example", "http://chat.example:5001", "http://chat.example.evil:5000",
    "http://chat.example:5000.evil", "http://localhost.evil", "null", "", "file://", "ws://chat.example:5000",
    "http://chat.example:5000@evil.example", "http://evil@chat.example:5000", "http://chat.example:5000/x",
    "http://chat.example:x", "chat.example:5000", "http://page.example", "https://page.example.evil"])
def test_page_from_elsewhere_may_not(origin):
    with pytest.raises(Forbidden, match="ALLOWED_ORIGINS"):
        handshake.check(request(Origin=origin), ("https://page.example",))


@pytest.mark.parametrize(("origin", "host", "may"), [
    ("https://a.example", "a.example", True), ("http://a.example", "a.example", True),
    ("http://a.example", "a.example:80", True), ("https://a.example", "a.example:443", True),
    ("https://a.example", "a.example:80", False), ("https://a.example:8443", "a.example", False),
    ("http://[::1]:5000", "[::1]:5000", True), ("http://127.0.0.1:5000", "localhost:5000", False)])
def test_ports_count(origin, host, may):
    assert origin_allowed(origin, host, ()) == may
