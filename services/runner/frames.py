"""One connection of the runner, read and written without ever blocking.

The frames are those of `multiprocessing.connection`, which the other side speaks: a signed 32-bit big-endian length,
or -1 and an unsigned 64-bit one, then that many bytes.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from typing import Any

from services.wire import MAX_FRAME, Channel, Message, Piece, WireError, decode, encode

READ = 1 << 16          # bytes taken from a socket at a time
MOST_LOGPROBS = 4096    # of a piece that others may be joined to
LONG = 0x7FFFFFFF       # payloads above it carry the long length


class Peer:
    """A connection and the request that runs on it, if any. Used by the post's thread alone."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.sequence: Any = None               # the request in hand, as the runner made it
        self.patient = False                    # its reader does not read along
        self.flushed = 0.0                      # when something was sent last
        self.stuck: float | None = None         # since when the other side takes nothing, though something is to send
        self._incoming = bytearray()
        self._outgoing: deque[Message] = deque()
        self._sending = memoryview(b"")         # rest of a frame that was begun
        os.set_blocking(channel.fileno(), False)

    def fileno(self) -> int:
        return self.channel.fileno()

    def close(self) -> None:
        self.channel.close()

    def read(self) -> list[Message]:
        """The messages that have arrived whole. `WireError`: the other side is gone, or does not speak our words."""
        try:
            data = os.read(self.fileno(), READ)
        except BlockingIOError:
            return []
        except OSError as error:
            raise WireError(f"the other side is gone: {error}") from None
        if not data:
            raise WireError("the other side is gone")
        self._incoming += data
        messages = []
        while (frame := take_frame(self._incoming)) is not None:
            messages.append(decode(frame))
        return messages

    def post(self, message: Message) -> None:
        """Queue a message. Text that still waits is joined to the piece before it, so a slow reader costs little."""
        last = self._outgoing[-1] if self._outgoing else None
        if isinstance(message, Piece) and isinstance(last, Piece) and _goes_on(last, message):
            self._outgoing[-1] = Piece(id=last.id, text=last.text + message.text, tokens=last.tokens + message.tokens,
                                       logprobs=[*last.logprobs, *message.logprobs])
        else:
            self._outgoing.append(message)

    def flush(self, now: float) -> bool:
        """Send what the socket takes; True when nothing is left. `WireError`: the other side is gone."""
        while self._sending or self._outgoing:
            self._sending = self._sending or memoryview(frame_of(encode(self._outgoing.popleft())))
            try:
                sent = os.write(self.fileno(), self._sending)
            except BlockingIOError:
                self.stuck = self.stuck or now
                return False
            except OSError as error:
                raise WireError(f"the other side is gone: {error}") from None
            self._sending, self.stuck, self.flushed = self._sending[sent:], None, now
        return True


def _goes_on(last: Piece, piece: Piece) -> bool:
    """Whether both may be said as one: not where log probabilities are the prompt's and what follows is the answer's,
    or are so many that the frame gets too large."""
    prompts = last.logprobs and not last.tokens
    return last.id == piece.id and not (prompts and piece.tokens) and len(last.logprobs) < MOST_LOGPROBS


def frame_of(payload: bytes) -> bytes:
    size = len(payload)
    return (struct.pack("!i", size) if size <= LONG else struct.pack("!iQ", -1, size)) + payload


def take_frame(buffer: bytearray) -> bytes | None:
    """Take one whole frame's payload off the buffer's front; None while there is none. `WireError`: not a frame."""
    if len(buffer) < 4:
        return None
    head, size = 4, struct.unpack_from("!i", buffer)[0]
    if size == -1:
        if len(buffer) < 12:
            return None
        head, size = 12, struct.unpack_from("!Q", buffer, 4)[0]
    if not 0 <= size <= MAX_FRAME:
        raise WireError(f"a frame of {size} bytes is refused; the limit is {MAX_FRAME}")
    if len(buffer) < head + size:
        return None
    payload = bytes(buffer[head:head + size])
    del buffer[:head + size]
    return payload
