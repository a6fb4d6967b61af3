"""gunicorn's two processes, as far as Parley needs them to differ: how they stop, and how they refuse bad HTTP.

The arbiter says through one shared byte that the whole server stops, since a worker cannot tell that from being
replaced after a HUP: both come as SIGTERM. A stopping worker goes on accepting, to answer 503, until its running
answers are done; a replaced one stops accepting and finishes in silence.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
import uuid
from collections.abc import Callable
from types import FrameType
from typing import Any

from gunicorn import arbiter, glogging
from gunicorn.errors import HaltServer
from gunicorn.http import errors as http_errors
from gunicorn.workers import gthread

from services.errors import BadRequest, ParleyError
from services.web.frame import HEADERS
from services.web.sockets.switchboard import Switchboard

log = logging.getLogger("parley.web")
IDLE_SECONDS = 30           # a client may leave a half-sent request, or an unread answer, for this long
HARD_STOP = 1.0             # seconds between "end at once" and the end
_TIMEVAL = struct.pack("ll", IDLE_SECONDS, 0)


class SharedFlag:
    """One byte that a process and its forks see: raised once, never lowered."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 1)

    def set(self) -> None:
        self._page[0] = 1

    def __bool__(self) -> bool:
        return self._page[0] == 1


class Arbiter(arbiter.Arbiter):
    """SIGTERM drains, a second one ends at once; SIGINT is the supervisor's to judge, who got it from the terminal."""

    def signal(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and self.app.stopping:
            sig = signal.SIGQUIT
        if sig != signal.SIGINT:
            super().signal(sig, frame)

    def stop(self, graceful: bool = True) -> None:
        self.app.stopping.set()
        super().stop(graceful)

    def reap_workers(self) -> None:
        """A worker that fails to boot ends the server, but not amid its end, which goes on for the others."""
        try:
            super().reap_workers()
        except HaltServer as halt:
            if not self.app.stopping:
                raise
            log.warning("while stopping: %s", halt.reason)


class Logger(glogging.Logger):
    """gunicorn's lines go where all lines go, with control characters escaped."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for logger in (self.error_log, self.access_log):
            logger.handlers.clear()
            logger.propagate = True

    def exception(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """A client that fell silent (see `Worker.enqueue_req`) is no failure of ours."""
        if isinstance(sys.exc_info()[1], BlockingIOError):
            self.error_log.info("a client was silent for %d s: closed", IDLE_SECONDS)
        else:
            super().exception(msg, *args, **kwargs)


class Worker(gthread.ThreadWorker):
    """One web worker process; `app` is the `serve.Application` that it was forked from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._busy = 0                  # requests in hand; under _busy_lock
        self._busy_lock = threading.Lock()
        self._waiting = False

    # ------------------------------------------------------------ connections

    def enqueue_req(self, conn: Any) -> None:
        """A socket on which nothing moves for long fails, so that no silent client holds a thread for ever."""
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            conn.sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL)
        super().enqueue_req(conn)

    def handle_request(self, req: Any, conn: Any) -> bool:
        with self._busy_lock:
            self._busy += 1
        try:
            return super().handle_request(req, conn)
        finally:
            with self._busy_lock:
                self._busy -= 1

    def finish_request(self, conn: Any, fs: Any) -> None:
        """A connection that has become a websocket is the switchboard's from now on."""
        def gone() -> None:
            self.nr_conns -= 1
        if not self._sockets.adopt(conn.sock, lambda: conn.parser.unreader.take_buffered(),
                                   lambda: self.method_queue.defer(gone)):
            super().finish_request(conn, fs)

    @property
    def _sockets(self) -> Switchboard:
        return self.wsgi.extensions["parley"].sockets

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Bad HTTP gets the one envelope too. The connection is closed: what follows on it cannot be told apart."""
        error = refusal(exc)
        if error.status >= 500:
            log.error("unexpected %s before the application", type(exc).__name__, exc_info=exc)
        else:
            log.info("malformed request: %s", type(exc).__name__)
        try:
            client.sendall(raw_response(error))
        except OSError as gone:
            log.debug("nobody reads the refusal: %s", gone)

    # ------------------------------------------------------------ stopping

    def init_signals(self) -> None:
        super().init_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.app.stopping:       # our SIGTERM may have come to the arbiter's handler, which a fork inherits
            sys.exit(0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._let_sockets_go()
        if not self.app.stopping:
            super().handle_exit(sig, frame)
        elif not self._waiting:
            self._waiting = True
            self.app.drain.begin(self.app.settings.drain_timeout)
            threading.Thread(target=self._finish, args=(lambda: gthread.ThreadWorker.handle_exit(self, sig, frame),),
                             name="drain", daemon=True).start()

    def _finish(self, leave: Callable[[], None]) -> None:
        """Wait for the answers in hand, which the drain cuts in time, then let the worker's loop end."""
        deadline = time.monotonic() + self.app.settings.drain_timeout + 2
        while (self._busy or self.app.drain.working) and time.monotonic() < deadline:
            time.sleep(0.05)
        leave()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """End at once: running answers are cut at their next event, what still hangs then is left behind."""
        self.app.drain.begin(0)
        self._let_sockets_go()
        self._close_listeners()
        hard = threading.Timer(HARD_STOP, os._exit, (0,))
        hard.daemon = True
        hard.start()
        super().handle_quit(sig, frame)

    def _let_sockets_go(self) -> None:
        if hasattr(self, "wsgi"):           # signals may come before it is loaded
            self._sockets.leave()

    def is_parent_alive(self) -> bool:
        if super().is_parent_alive():
            return True
        self.handle_quit(signal.SIGQUIT, None)
        return False

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not self.alive:
            self._close_listeners()

    def _cap_keepalive(self, deadline: float) -> None:
        """No lingering after a drain: idle connections had all of it to send their next request."""
        super()._cap_keepalive(time.monotonic() if self._waiting else deadline)

    def _close_listeners(self) -> None:
        """Refuse new connections rather than let them wait for nobody."""
        for listener in self.sockets:
            listener.close()


_STATUS = (
    (http_errors.LimitRequestLine, 414, "the request line is too long"),
    (http_errors.LimitRequestHeaders, 431, "the header fields are too many or too long"),
    (http_errors.UnsupportedTransferCoding, 501, "this Transfer-Encoding is not supported"),
    (http_errors.ExpectationFailed, 417, "this Expect is not supported"),
    (http_errors.ParseException, 400, "this is not a well-formed HTTP request"),
)


def refusal(exc: BaseException) -> ParleyError:
    """What a client is told of a request that never reached the application."""
    for kind, status, message in _STATUS:
        if isinstance(exc, kind):
            error: ParleyError = BadRequest(message, code="bad_http")
            error.status = status
            return error
    return ParleyError("internal error")


def raw_response(error: ParleyError) -> bytes:
    """A whole response: nothing of the request is echoed."""
    body = json.dumps(error.envelope(), separators=(",", ":")).encode()
    head = (f"HTTP/1.1 {error.status} Refused\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-Id: {uuid.uuid4().hex}\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items()))
    return head.encode("ascii") + b"\r\n" + body
