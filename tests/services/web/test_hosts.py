"""Names that a request may call the server by (W2)."""

from __future__ import annotations

import socket

import pytest

from services.errors import Misdirected
from services.web import hosts
from tests.conftest import MASTER

OWN = ["localhost", "LocalHost:5000", "127.0.0.1:5000", "192.168.1.7", "[::1]:5000", "[::ffff:1.2.3.4]", "parley:5000",
       "app.localhost", "localhost.:80"]
FOREIGN = [None, "", "evil.com", "evil.com:5000", "localhost.evil.com", "127.0.0.1.evil.com", "evil.com,localhost",
           "localhost,evil.com", "user@localhost", "localhost:port", "[evil]", "127.1", "2130706433", "evil.local", "é",
           "localhost\n", " localhost", "localhost:5000:5000", "a" * 300, "[::1", "xn--localhost.evil.com", "."]


@pytest.mark.parametrize("host", OWN)
def test_its_addresses_and_names_without_a_dot(host):
    hosts.check(host, (), loopback=True)
    hosts.check(host, ("chat.example.org",), loopback=False)


@pytest.mark.parametrize("host", FOREIGN)
def test_others_are_refused(host):
    for allowed, loopback in (((), True), (("chat.example.org",), True), (("chat.example.org",), False)):
        with pytest.raises(Misdirected, match="ALLOWED_HOSTS"):
            hosts.check(host, allowed, loopback)
    hosts.check(host, (), loopback=False)
    hosts.check(host, ("*",), loopback=True)


def test_those_that_are_listed():
    for host in ("chat.example.org", "Chat.Example.org:8443", "chat.example.org."):
        hosts.check(host, ("chat.example.org",), loopback=True)
    with pytest.raises(Misdirected):
        hosts.check("evil.chat.example.org", ("chat.example.org",), loopback=True)


def test_a_server_refuses_before_it_looks_at_the_key(start):
    server = start()
    port = int(server.url.rpartition(":")[2])
    for path in ("/auth", "/chat", "/healthz", "/nothing"):
        response = server.call("GET", path, headers={"Host": "evil.com"})
        assert (response.status_code, response.json()["error"]["code"]) == (421, "misdirected"), path
    for lines, status in (("Host: evil.com", b"421"), ("Host: localhost", b"200"), (f"Host: 10.1.2.3:{port}", b"200"),
                          ("X: y", b"421"), ("Host: localhost\r\nHost: evil.com", b"421"), ("Host: ", b"421"),
                          (f"Host: evil.com:{port}", b"421"), (f"Host: localhost:{port + 1}", b"200"),
                          ("Host: localhost\r\nno header", b"421")):
        with socket.create_connection(("127.0.0.1", port), 30) as raw:
            raw.sendall(f"GET /auth HTTP/1.1\r\n{lines}\r\nAuthorization: {MASTER}\r\n"
                        "Connection: close\r\n\r\n".encode())
            head = raw.makefile("rb").read().partition(b"\r\n\r\n")[0]
            assert head.split()[1] in (status, b"400" if status == b"421" else status), lines
            for line in (b"Cache-Control: no-store", b"X-Content-Type-Options: nosniff", b"X-Frame-Options: DENY",
                         b"Referrer-Policy: no-referrer", b"frame-ancestors 'none'"):
                assert line in head, lines
