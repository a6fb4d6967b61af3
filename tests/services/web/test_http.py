"""Raw bytes at the port of a real server: bad HTTP, lying lengths, clients that leave (rows B5 to B7, N1, N2, N4)."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator

import pytest

from tests.conftest import MASTER, Server, make_home
from tests.services.web.conftest import wait_until

HEAD = f"Host: x\r\nAuthorization: {MASTER}\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(make_home(tmp_path_factory.mktemp("http") / "home"), MAX_BODY_BYTES="100000")
    try:
        yield server.start().ready()
    finally:
        server.stop()


def connect(server) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    sock = socket.create_connection((host, int(port)), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def send(server, *parts: str | bytes, shut: bool = False) -> str:
    """All that comes back until the server closes, or falls silent after whole answers."""
    with connect(server) as sock:
        try:
            for part in parts:
                sock.sendall(part if isinstance(part, bytes) else part.encode("latin-1"))
            if shut:
                sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass                # it was refused before all of it was sent
        got = b""
        try:
            while chunk := sock.recv(65536):
                got += chunk
                if whole(got):
                    sock.settimeout(1)
        except (TimeoutError, ConnectionResetError):
            pass
    return got.decode("latin-1")


def whole(got: bytes) -> bool:
    head, found, body = got.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    return bool(found) and bool(lengths) and len(body) >= lengths[0]


def statuses(text: str) -> list[int]:
    return [int(status) for status in re.findall(r"HTTP/1\.[01] (\d{3}) ", text)]


def body(**fields) -> str:
    return json.dumps({"prompt": "!echo hi", **fields})


def post(payload: str, extra: str = "", path: str = "/answer") -> str:
    return f"POST {path} HTTP/1.1\r\n{HEAD}{extra}Content-Length: {len(payload)}\r\n\r\n{payload}"


TO_ANSWER = f"POST /answer HTTP/1.1\r\n{HEAD}"
CHUNKED = f"{TO_ANSWER}Transfer-Encoding: chunked\r\n\r\n"
LAST = "0\r\n\r\n"
BAD = {
    "length and chunked": (f"{TO_ANSWER}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{LAST}", 400),
    "two lengths": (f"POST /answer HTTP/1.1\r\n{HEAD}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}", 400),
    "negative length": (f"POST /answer HTTP/1.1\r\n{HEAD}Content-Length: -1\r\n\r\n{{}}", 400),
    "length is no number": (f"POST /answer HTTP/1.1\r\n{HEAD}Content-Length: 0x2\r\n\r\n{{}}", 400),
    "length with plus": (f"POST /answer HTTP/1.1\r\n{HEAD}Content-Length: +2\r\n\r\n{{}}", 400),
    "unknown coding": (f"{TO_ANSWER}Transfer-Encoding: xchunked\r\n\r\n{LAST}", (400, 501)),
    "coding twice": (f"{TO_ANSWER}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n{LAST}", 400),
    "chunk size junk": (f"{CHUNKED}xyz\r\n{{}}\r\n{LAST}", 400),
    "chunk size negative": (f"{CHUNKED}-2\r\n{{}}\r\n{LAST}", 400),
    "chunk without its end": (f"{CHUNKED}2\r\n{{}}x\r\n{LAST}", 400),
    "space before colon": (f"GET /auth HTTP/1.1\r\n{HEAD}X-A : b\r\n\r\n", 400),
    "folded header": (f"GET /auth HTTP/1.1\r\n{HEAD}X-A: b\r\n c\r\n\r\n", 400),
    "bare LF": ("GET /auth HTTP/1.1\nHost: x\n\n", 400),
    "NUL in a header": (f"GET /auth HTTP/1.1\r\n{HEAD}X-A: a\0b\r\n\r\n", 400),
    "no version": ("GET /auth\r\n\r\n", 400),
    "HTTP/9": (f"GET /auth HTTP/9.9\r\n{HEAD}\r\n", 400),
    "no method": (f" /auth HTTP/1.1\r\n{HEAD}\r\n", 400),
    "lower-case method": (f"get /auth HTTP/1.1\r\n{HEAD}\r\n", (400, 405)),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 500, 400),
    "9 KiB address": (f"GET /{'a' * 9000} HTTP/1.1\r\n{HEAD}\r\n", 414),
    "a 9 KiB field": (f"GET /auth HTTP/1.1\r\n{HEAD}X-A: {'a' * 9000}\r\n\r\n", (400, 431)),
    "101 fields": ("GET /auth HTTP/1.1\r\n" + "".join(f"X-{n}: a\r\n" for n in range(101)) + "\r\n", 431),
    "underscored twin": (f"GET /auth HTTP/1.1\r\nHost: x\r\nX_API_KEY: {MASTER}\r\n\r\n", (400, 401)),
    "SCRIPT_NAME": (f"GET /auth HTTP/1.1\r\n{HEAD}SCRIPT_NAME: /x\r\n\r\n", (200, 400)),
    "absolute form": (f"GET http://evil.example/auth HTTP/1.1\r\n{HEAD}\r\n", (200, 400, 404)),
}


@pytest.mark.parametrize("raw, status", BAD.values(), ids=BAD)
def test_bad_http_is_refused_once(server, raw, status):
    """What follows on the connection is never taken for a second request."""
    follow = f"GET /answer HTTP/1.1\r\n{HEAD}\r\n"
    got = send(server, raw, follow, shut=True)
    told = statuses(got)
    expected = status if isinstance(status, tuple) else (status,)
    assert told and told[0] in expected, got
    if told[0] >= 400 and told[0] not in (401, 404, 405):
        assert len(told) == 1, got
        error = json.loads(got.partition("\r\n\r\n")[2])
        assert error["error"]["code"] and error["message"] and "x-request-id" in got.lower()
    assert "Traceback" not in got and "<html" not in got.lower()


def test_pipelined_and_kept_alive_requests_are_all_answered(server):
    one = f"GET /auth HTTP/1.1\r\n{HEAD}\r\n"
    last = one.replace("Host", "Connection: close\r\nHost")
    assert statuses(send(server, one + post(body()) + last)) == [200, 200, 200]


@pytest.mark.parametrize("extra, status", [
    ("Content-Encoding: gzip\r\n", 415), ("Content-Encoding: identity\r\n", 200), ("Expect: 100-continue\r\n", 200),
    ("Expect: magic\r\n", 417), ("X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n", 200)])
def test_headers_around_a_body(server, extra, status):
    assert statuses(send(server, post(body(), extra)))[-1] == status


def chunks(payload: bytes, size: int = 7) -> bytes:
    cut = [payload[at:at + size] for at in range(0, len(payload), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in cut) + b"0\r\n\r\n"


def test_a_chunked_body_is_read_whole(server):
    got = send(server, CHUNKED, chunks(body().encode()))
    assert statuses(got) == [200] and '"result":"hi"' in got


def test_bodies_above_the_cap_are_413_also_when_chunked(server):
    big = body(prompt="x" * 100_000)
    assert statuses(send(server, post(big)))[0] == 413
    assert statuses(send(server, CHUNKED, chunks(big.encode(), 5000)))[0] == 413


def test_multipart_is_415(server):
    raw = "--b\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n" * 1000 + "--b--\r\n"
    head = HEAD.replace("application/json", "multipart/form-data; boundary=b")
    assert statuses(send(server, f"POST /answer HTTP/1.1\r\n{head}Content-Length: {len(raw)}\r\n\r\n{raw}"))[0] == 415


@pytest.mark.parametrize("how", ["length", "chunked", "chunked, no end"])
def test_a_body_that_breaks_off_asks_nothing_and_keeps_nothing(server, how):
    sid = how.replace(", ", "-").replace(" ", "-")
    payload = body(session_id=sid)
    if how == "length":
        raw = post(payload)[:-3]
    else:
        whole_body = chunks(payload.encode())
        raw = CHUNKED + whole_body[:-5 if how == "chunked, no end" else -9].decode()
    got = send(server, raw, shut=True)
    assert 200 not in statuses(got)
    assert server.call("GET", f"/answer/{sid}").status_code == 404


def test_a_smuggled_second_request_is_not_one(server):
    inner = f"DELETE /answer/kept HTTP/1.1\r\n{HEAD}\r\n"
    assert server.answer("x", "kept").status_code == 200
    send(server, post("{}" + inner, extra="").replace("Content-Length", "Content-Length"), shut=True)
    assert server.call("GET", "/answer/kept").status_code == 200


# ---------------------------------------------------------------- streams and clients that leave

def busy(server) -> int:
    return sum(model["in_use"] for model in server.call("GET", "/models").json()["loaded"])


def test_pieces_arrive_as_they_are_made(server):
    with connect(server) as sock:
        sock.sendall(post(json.dumps({"prompt": "!tokens 5 !sleep 0.3", "stream": True})).encode())
        reads, got = 0, b""
        while b'"done":true' not in got:
            got += sock.recv(65536)
            reads += 1
    assert reads >= 4, "not all at once"
    assert b"text/event-stream" in got and b"X-Accel-Buffering: no" in got


def test_a_silent_start_is_filled_with_heartbeats(server):
    with connect(server) as sock:
        sock.sendall(post(json.dumps({"prompt": "!wait 4 !echo late", "stream": True})).encode())
        got = b""
        while b'"done":true' not in got:
            got += sock.recv(65536)
    head, _, stream = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and stream.count(b": hb") >= 2
    assert stream.index(b": hb") < stream.index(b"late")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["!wait 60 !echo x", "!tokens 100 !sleep 0.5"], ids=["before the first", "amid"])
def test_a_client_that_leaves_frees_the_runner(server, stream, prompt):
    sid = f"left-{'s' if stream else 'j'}-{len(prompt)}"
    with connect(server) as sock:
        sock.sendall(post(json.dumps({"prompt": prompt, "stream": stream, "session_id": sid})).encode())
        wait_until(lambda: busy(server) == 1)
        time.sleep(1.5)
    left = time.monotonic()
    wait_until(lambda: busy(server) == 0)
    assert time.monotonic() - left < 10, "seconds, not the minute that the answer would take"
    turns = server.call("GET", f"/answer/{sid}").json()["turns"]
    assert turns[-1].get("interrupted") is True and turns[0]["content"] == prompt
    assert server.answer("hello", sid).status_code == 200, "the session is free again"


def test_many_clients_that_leave_leave_nothing_behind(server):
    for _ in range(100):
        with connect(server) as sock:
            sock.sendall(post(json.dumps({"prompt": "!tokens 50 !sleep 0.2", "stream": True})).encode())
    wait_until(lambda: busy(server) == 0)
    assert server.answer("hello").status_code == 200
