"""One request over one connection to an address that was checked: with a deadline for all of it, and a cap on bytes."""

from __future__ import annotations

import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import httpcore

from services.engine.networks import Address
from services.errors import FetchFailed
from services.knowledge.urls import Url

AGENT = "Parley"            # the name that robots.txt may know us by
ACCEPT = "text/html, application/xhtml+xml, application/xml;q=0.9, text/*;q=0.9, application/pdf;q=0.8, */*;q=0.5"
SHARE = 0.5                 # of the time that is left, for one of several addresses to take a connection
Dial = Callable[[str, int, float], socket.socket]      # address, port, seconds -> a connected socket, or OSError


@dataclass(frozen=True)
class Posted:
    """What is sent instead of asked for."""

    content: bytes
    headers: tuple[tuple[str, str], ...]


def dial(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), seconds)


@cache
def trusted() -> ssl.SSLContext:
    """TLS with whom the system trusts. Made once, since that takes a while."""
    return httpcore.default_ssl_context()


@contextmanager
def asked(url: Url, addresses: Sequence[Address], until: float, dial: Dial, context: ssl.SSLContext | None = None,
          posted: Posted | None = None) -> Iterator[httpcore.Response]:
    """The answer to GET `url`, or to POST of what is `posted`, its body not yet read. The host's name goes into Host
    and TLS only; no cookies, no credentials, nothing of the client's. Raises `FetchFailed`."""
    origin = httpcore.Origin(url.scheme.encode(), url.host.encode(), url.port)
    target = httpcore.URL(scheme=origin.scheme, host=origin.host, port=origin.port, target=url.target.encode())
    headers = [("Host", url.authority), ("User-Agent", f"{AGENT}/1"), ("Accept", ACCEPT),
               ("Accept-Encoding", "gzip, identity"), ("Connection", "close")]
    if posted is not None:
        headers += [*posted.headers, ("Content-Length", str(len(posted.content)))]
    pinned = _Pinned(url, addresses, until, dial)
    if url.scheme == "https" and context is None:
        context = trusted()
    try:
        with (httpcore.HTTPConnection(origin, ssl_context=context, network_backend=pinned) as connection,
              connection.stream("POST" if posted else "GET", target, headers=headers,
                                content=posted.content if posted else None) as response):
            yield response
    except (httpcore.ProtocolError, httpcore.NetworkError) as error:
        raise FetchFailed(f"{url.host} does not answer as a web server does ({str(error)[:200]})",
                          param="url") from None


def header(response: httpcore.Response, name: str) -> str:
    """The first header `name` (lower case) of `response`; "" without one."""
    return next((value.decode("utf-8", "replace").strip() for key, value in response.headers
                 if key.lower() == name.encode()), "")


def body(response: httpcore.Response, most: int, host: str) -> tuple[bytes, bool]:
    """(the first `most` bytes of the body as they are meant, whether there are more). Never inflates more than that."""
    encoding = header(response, "content-encoding").lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise FetchFailed(f"{host} sends its page encoded as {encoding[:60]!r}, which was not asked for", param="url")
    pieces = response.iter_stream()
    if encoding in ("gzip", "x-gzip"):
        pieces = _inflated(pieces, most + 1, host)
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > most:
            return bytes(data[:most]), True
    return bytes(data), False


def _inflated(pieces: Iterable[bytes], most: int, host: str) -> Iterator[bytes]:
    """What gzip `pieces` hold, of which no more than `most` bytes are made; neither are more than that read."""
    inflater, made, read = zlib.decompressobj(31), 0, 0
    for piece in pieces:
        read += len(piece)
        while piece and made < most:
            try:
                out = inflater.decompress(piece, most - made)
            except zlib.error as error:
                raise FetchFailed(f"{host} sends a page that is no gzip though it says so ({error})",
                                  param="url") from None
            made += len(out)
            yield out
            piece = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            if inflater.eof and not piece.startswith(b"\x1f"):
                return
            if inflater.eof:
                inflater = zlib.decompressobj(31)
        if made >= most:
            return
        if read > most:
            raise FetchFailed(f"{host} sends more compressed bytes than the page may have uncompressed", param="url")
    if not inflater.eof:
        raise FetchFailed(f"{host} ended the page early", param="url")


class _Pinned(httpcore.NetworkBackend):
    """Connects to the addresses that were checked, whatever the name means by now."""

    def __init__(self, url: Url, addresses: Sequence[Address], until: float, dial: Dial) -> None:
        self._url, self._addresses, self._until, self._dial = url, addresses, until, dial

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
                    socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None) -> httpcore.NetworkStream:
        assert (host, port) == (self._url.host, self._url.port)
        for address in self._addresses:
            last = address is self._addresses[-1]
            left = _left(self._url, self._until)
            try:
                return _Timed(self._dial(str(address), port, left if last else left * SHARE), self._url, self._until)
            except OSError as error:
                if last:
                    raise _lost(self._url, error) from None
        raise AssertionError("a host without an address")


class _Timed(httpcore.NetworkStream):
    """A socket of which every call ends at the same time, so that no drip of bytes prolongs it (row R8)."""

    def __init__(self, sock: socket.socket, url: Url, until: float) -> None:
        self._socket, self._url, self._until = sock, url, until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._socket.settimeout(_left(self._url, self._until))
        try:
            return self._socket.recv(max_bytes)
        except OSError as error:
            raise _lost(self._url, error) from None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._socket.settimeout(_left(self._url, self._until))
        try:
            self._socket.sendall(buffer)
        except OSError as error:
            raise _lost(self._url, error) from None

    def close(self) -> None:
        self._socket.close()

    def start_tls(self, ssl_context: ssl.SSLContext, server_hostname: str | None = None,
                  timeout: float | None = None) -> httpcore.NetworkStream:
        self._socket.settimeout(_left(self._url, self._until))
        try:
            return _Timed(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname), self._url,
                          self._until)
        except (OSError, ValueError) as error:
            self.close()
            raise _lost(self._url, error) from None


def _left(url: Url, until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise FetchFailed(f"{url.host} takes longer than a page may (FETCH_TIMEOUT): given up", param="url")
    return left


def _lost(url: Url, error: Exception) -> FetchFailed:
    if isinstance(error, TimeoutError):
        return FetchFailed(f"{url.host} gives no answer in the time that a page may take (FETCH_TIMEOUT)", param="url")
    if isinstance(error, ssl.SSLError):
        why = getattr(error, "verify_message", "") or error.reason or "no TLS"
        return FetchFailed(f"{url.host} cannot be trusted or spoken to by TLS ({why})", param="url")
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return FetchFailed(f"{url.host} cannot be reached ({why})", param="url")
