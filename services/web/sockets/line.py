"""One websocket as a line of texts: framing, limits, and what becomes of a client that floods, stalls or is gone.

The switchboard's thread reads; any thread may say something or end it. Framing is `websockets`' Protocol, which does no
input and output of its own.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.protocol import SEND_EOF, Protocol, Side, State

from services.web.watch import ClientGone

NORMAL, GOING_AWAY, UNSUPPORTED, BAD_TEXT, POLICY = 1000, 1001, 1003, 1007, 1008
NO_KEY = 4401
CHUNK = 64 * 1024           # bytes read at once from one line, so that none keeps the others waiting ...
SLICE = 4 * 1024            # ... and looked at before the next limit is checked
MOST_UNREAD = 64 * 1024     # bytes that a client may leave unread before an answer waits for it
MOST_REASON = 120           # bytes of a close frame's reason; RFC 6455 has room for 123
_quiet = logging.getLogger("parley.web.frames")
_quiet.setLevel(logging.WARNING)        # the library tells of every connection


@dataclass(frozen=True)
class Limits:
    """Of one line. Seconds, unless it says otherwise."""

    message_bytes: int
    frames_per_minute: int = 600    # of any kind: also pings, and parts of a message
    message: float = 30.0           # from the first byte of a message to its last
    unread: float = 30.0            # without the client reading anything of what waits for it
    ping: float = 30.0              # of silence, after which a sign of life is asked for; as long again for the reply
    closing: float = 5.0            # for the client's part of the closing


class Line:
    """A connection that was upgraded; `rest` is what came behind the request. Its socket is ours to close."""

    def __init__(self, sock: socket.socket, rest: bytes, limits: Limits) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._limits = limits
        self._rest = rest
        self._lock = threading.Lock()           # owns the protocol, what is to be sent, and the sending
        self._protocol = Protocol(Side.SERVER, max_size=limits.message_bytes, logger=_quiet)
        self._out = bytearray()
        self._eof = False                       # nothing follows what is to be sent
        self._ended: float | None = None        # since when it is being closed
        self._code = 0                          # with which it was ended here
        self._parts: list[bytes] = []           # of a message that has begun
        self._begun: float | None = None        # since when a message, or a frame, is not complete
        self._heard = self._pinged = time.monotonic()
        self._minute, self._frames = self._heard, 0
        self.gone = False                       # the connection is of no use any more
        self.received = self.sent = 0           # bytes

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def open(self) -> bool:
        return not self.gone and self._ended is None

    @property
    def close_code(self) -> int:
        """The one that was sent, or 1006 for a connection that broke."""
        sent = self._protocol.close_sent
        return self._code or (1006 if sent is None else sent.code)

    # ------------------------------------------------------------ any thread

    def say(self, text: str) -> None:
        """Send a text frame. Waits for a client that reads slowly; raises `ClientGone` for one that does not, or left.

        Half of a surrogate pair, should a model write one, leaves as its escape."""
        with self._lock:
            try:
                self._protocol.send_text(text.encode("utf-8", "backslashreplace"))
            except InvalidState:
                raise ClientGone from None
            self._send()
        self._wait()

    def _wait(self) -> None:
        """Until the client has read enough of what waits for it."""
        until, before = time.monotonic() + self._limits.unread, len(self._out)
        while len(self._out) > MOST_UNREAD and not self.gone:
            if time.monotonic() >= until:
                self.end(POLICY, "nothing is read of what is sent")
                break
            poll = select.poll()
            with suppress(ValueError):          # closed meanwhile
                poll.register(self._sock, select.POLLOUT)
                poll.poll(1000)
            with self._lock:
                self._send()
            if len(self._out) < before:
                until, before = time.monotonic() + self._limits.unread, len(self._out)
        self.check()

    def check(self) -> None:
        """Raise `ClientGone` when nobody is there to read on."""
        if not self.open:
            raise ClientGone

    def end(self, code: int, reason: str = "") -> None:
        """Close it, with `code`; the first one counts. What was said before still goes out."""
        with self._lock:
            if self._ended is None and self._protocol.state is State.OPEN:
                reason = reason.encode()[:MOST_REASON].decode(errors="ignore")
                self._code = code
                if code in (NORMAL, GOING_AWAY):
                    self._protocol.send_close(code, reason)
                else:
                    self._protocol.fail(code, reason)
                self._send()

    # ------------------------------------------------------------ the switchboard's thread

    def read(self) -> Iterator[str]:
        """The texts that have come. Ends the line where a limit is passed."""
        data, self._rest = self._rest, b""
        if not data:
            try:
                data = self._sock.recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.gone = True
                return
        now = time.monotonic()
        if not data:
            self._hang_up()
        self._heard = now
        self.received += len(data)
        for start in range(0, len(data), SLICE):
            frames = self._fed(data[start:start + SLICE])
            texts = [text for frame in frames if (text := self._text(frame, now)) is not None]
            self._begun = None if frames and not self._parts else self._begun or now
            yield from texts

    def _fed(self, data: bytes) -> list[Frame]:
        with self._lock:
            if self.gone:
                return []
            self._protocol.receive_data(data)
            found = [event for event in self._protocol.events_received() if isinstance(event, Frame)]
            self._send()
        return found if self._ended is None else []

    def _text(self, frame: Frame, now: float) -> str | None:
        """The whole text that `frame` completes."""
        if now - self._minute >= 60:
            self._minute, self._frames = now, 0
        self._frames += 1
        if self._frames > self._limits.frames_per_minute:
            self.end(POLICY, f"more than {self._limits.frames_per_minute} frames in a minute")
        if not self.open or frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return None
        if frame.opcode is Opcode.BINARY:
            self.end(UNSUPPORTED, "expected text frames")
            return None
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return None
        whole, self._parts = b"".join(self._parts), []
        try:
            return whole.decode("utf-8")
        except UnicodeDecodeError:
            self.end(BAD_TEXT, "not UTF-8")
            return None

    def _hang_up(self) -> None:
        """The client sends nothing more."""
        with self._lock:
            self._protocol.receive_eof()
            self._send()
            self.gone = True

    def tick(self, now: float) -> None:
        """About once a second: what time has run out for."""
        limits = self._limits
        with self._lock:
            self._send()
        if self._ended is not None:
            self.gone = self.gone or now - self._ended >= limits.closing
        elif self._begun is not None and now - self._begun >= limits.message:
            self.end(POLICY, f"a message was not complete after {limits.message:g} s")
        elif now - self._heard >= 2 * limits.ping:
            self.gone = True
        elif now - max(self._heard, self._pinged) >= limits.ping:
            self._pinged = now
            with self._lock, suppress(InvalidState):
                self._protocol.send_ping(b"")
                self._send()

    def close(self) -> None:
        """Let the connection go."""
        self.gone = True
        with self._lock:
            self._sock.close()

    # ------------------------------------------------------------ under the lock

    def _send(self) -> None:
        """What the protocol has to send, and what waits, as far as the connection takes it."""
        for data in self._protocol.data_to_send():
            self._eof = self._eof or data == SEND_EOF
            self._out += data
        if self._protocol.state is not State.OPEN and self._ended is None:
            self._ended = time.monotonic()
        try:
            while self._out and not self.gone:
                count = self._sock.send(self._out[:CHUNK])
                self.sent += count
                del self._out[:count]
            if self._eof and not self._out and not self.gone:
                self._eof = False
                self._sock.shutdown(socket.SHUT_WR)
        except (BlockingIOError, InterruptedError):
            if len(self._out) > 2 * MOST_UNREAD + self._limits.message_bytes:
                self.gone = True        # replies to pings that nobody reads
        except OSError:
            self.gone = True
