"""Asking, between two events of an answer, whether going on has a point."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from flask import request

from services.web.drain import Drain

CHECK = "parley.check"      # in the environ of a request of the server's own: raises ClientGone when it is not wanted


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


class Watch:
    """Over one client's connection, and over the server's stop."""

    def __init__(self, sock: socket.socket | None, drain: Drain, check: Callable[[], None] = lambda: None) -> None:
        self._drain = drain
        self._check = check
        self._poll = select.poll() if sock is not None else None
        if self._poll is not None and sock is not None:
            self._poll.register(sock, select.POLLRDHUP)

    def check(self) -> None:
        """Raise `ClientGone`, or `Unavailable` when the server stops. A half-closed connection counts as gone."""
        if self._poll is not None and self._poll.poll(0):
            raise ClientGone
        self._check()
        self._drain.check_running()


def of_request(drain: Drain) -> Watch:
    """The watch over the client of the request in hand; the socket is gunicorn's, other servers have none."""
    environ = request.environ
    return Watch(environ.get("gunicorn.socket"), drain, environ.get(CHECK) or (lambda: None))
