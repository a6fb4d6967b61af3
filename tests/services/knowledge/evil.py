"""A web server on the loopback that answers as it is told, byte by byte, and public names that lead to it by a seam."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from services.knowledge.fetch import Fetcher
from services.settings import Settings

PUBLIC = "93.184.216.34"
Answer = bytes | Callable[[socket.socket], None]
connects: list[tuple[str, int]] = []            # what this process has connected to, or tried to


def _listen(event: str, arguments: tuple) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        connects.append(arguments[1][:2])


sys.addaudithook(_listen)


def page(body: bytes = b"<main>hello</main>", status: str = "200 OK", kind: str = "text/html", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str, body: bytes = b"", *more: str) -> bytes:
    return page(body, "302 Found", "text/html", f"Location: {location}", *more)


class Evil:
    """`pages`: path -> what is sent. `asked`: (path, headers) of the requests. Names end in `.test`."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.pages: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.resolved: list[str] = []
        self.names: dict[str, list[str]] = {}
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._socket.getsockname()[1]
        self._ended = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked if path != "/robots.txt"]

    def _serve(self) -> None:
        while not self._ended.is_set():
            with suppress(OSError):
                connection, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head:
                if not (piece := connection.recv(65536)):
                    return
                head += piece
            lines = head.decode().split("\r\n")
            path = lines[0].split(" ")[1]
            self.asked.append((path, {key.lower(): value for key, _, value in (line.partition(": ") for line in
                                                                               lines[1:] if line)}))
            answer = self.pages.get(path.partition("?")[0], page(status="404 Not Found"))
            if callable(answer):
                answer(connection)
            else:
                connection.sendall(answer)

    def resolve(self, host: str, seconds: float) -> list[str]:
        self.resolved.append(host)
        if host in self.names:
            return self.names[host]
        if host.endswith(".test"):
            return [PUBLIC]
        raise OSError(0, "Name or service not known")

    def dial(self, address: str, port: int, seconds: float) -> socket.socket:
        """The seam: the public address is this server; everything else is dialled as it is."""
        if address == PUBLIC:
            return socket.create_connection(("127.0.0.1", self.port), seconds)
        return socket.create_connection((address, port), seconds)

    def fetcher(self, context: ssl.SSLContext | None = None, **settings: object) -> Fetcher:
        return Fetcher(Settings(**settings), resolve=self.resolve, dial=self.dial, context=context)

    def end(self) -> None:
        self._ended.set()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        self._socket.close()


def drip(head: bytes, piece: bytes, every: float = 0.02) -> Callable[[socket.socket], None]:
    """Sends `head`, then `piece` again and again for as long as somebody listens (at most 20 s)."""
    def send(connection: socket.socket) -> None:
        connection.sendall(head)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            connection.sendall(piece)
            time.sleep(every)
    return send


def flood(head: bytes, piece: bytes) -> Callable[[socket.socket], None]:
    return drip(head, piece, 0)
