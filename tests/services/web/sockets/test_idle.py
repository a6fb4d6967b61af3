"""500 websockets on which nothing is said (row N9); `tests/bench/bench_sockets.py` measures them."""

from __future__ import annotations

import base64
import os
import socket
from contextlib import ExitStack

import requests
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect

from tests.conftest import MASTER, make_home, serving

IDLE = 500


def opened(address):
    """A websocket by a plain connection: the client has neither threads nor pings of its own."""
    sock = socket.create_connection(address, 30)
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(f"GET /gpt-socket/assistant HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nUpgrade: websocket\r\n"
                 f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
                 f"Authorization: {MASTER}\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        piece = sock.recv(4096)
        assert piece, head
        head += piece
    return sock, int(head.split(b" ")[1])


def test_five_hundred_idle_sockets_leave_room_for_everybody_else(tmp_path):
    with serving(make_home(tmp_path / "home"), MAX_SOCKETS=str(IDLE + 1), MAX_SOCKETS_PER_KEY=str(IDLE + 1)
                 ) as server, ExitStack() as stack:
        server.ready()
        host, _, port = server.url.removeprefix("http://").partition(":")
        address, quiet = (host, int(port)), []
        for _ in range(IDLE):
            sock, status = opened(address)
            quiet.append(stack.enter_context(sock))
            assert status == 101
        assert requests.get(server.url + "/healthz", timeout=30).status_code == 200
        assert server.answer("hello").status_code == 200
        with connect(server.url.replace("http", "ws") + "/gpt-socket/assistant",
                     additional_headers={"Authorization": MASTER}) as busy:
            busy.send("hello")
            while busy.recv(timeout=30) != "<END>":
                pass
            refused, status = opened(address)
            refused.close()
            assert status == 503
        for sock in quiet:
            sock.sendall(Frame(Opcode.PING, b"there?").serialize(mask=True))
            assert sock.recv(4096) == Frame(Opcode.PONG, b"there?").serialize(mask=False)
