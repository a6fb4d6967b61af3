"""The thread that owns the runner's sockets: it hears requests, hands them to the loop, and carries answers back.

An answer belongs to the connection object that asked, never to an id that a client chose, so none can go astray.
The loop's thread calls `tell` and nothing else; it never waits for a reader.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Protocol, TypeVar

from services.errors import ParleyError
from services.runner.frames import Peer
from services.wire import (
    Channel,
    Count,
    Counted,
    Detokenize,
    Done,
    Embed,
    Failed,
    Forget,
    Generate,
    GetStats,
    Message,
    Piece,
    Prepare,
    Rank,
    Ranked,
    Stats,
    Tokenize,
    Tokens,
    Vectors,
    WireError,
)

log = logging.getLogger("parley.runner")
Answer = TypeVar("Answer")

PATIENCE = 60.0         # seconds after which a reader that takes nothing is given up
LUMP = 0.25             # seconds between two pieces for who does not read along: each one wakes two processes
FAREWELL = 0.5          # seconds that the last words may take at the end
STACK = 64 << 20        # bytes: tokenisers recurse over long texts


class Desk(Protocol):
    """What the post asks of the runner. All of it may be called while the loop is in a decode.

    What `prepare` makes of a request is the runner's own; the post knows its `id`, and writes its `reply`.
    """

    def prepare(self, message: Generate | Embed | Rank) -> Any:
        """The request, tokenised and checked; ParleyError when it cannot be."""

    def count(self, message: Count) -> Counted:
        """Token counts; ParleyError when a text is too long to count."""

    def tokens(self, message: Tokenize | Detokenize) -> Tokens:
        """A text and its tokens; ParleyError when it is too long, or they are none."""

    def stats(self) -> Stats:
        """How the runner is."""

    def begin(self, sequence: Any) -> None:
        """Hand a request to the loop."""

    def ahead(self, message: Prepare) -> None:
        """Have the loop compute a prompt before it is asked for."""

    def forget(self, message: Forget) -> None:
        """Have the loop drop all that is held of a session."""

    def cancel(self, sequence: Any) -> None:
        """Have the loop end a request, if it has not ended."""


class Post:
    def __init__(self, desk: Desk, clock: Callable[[], float] = time.monotonic) -> None:
        self.desk, self.clock = desk, clock
        self._adopted: deque[Channel] = deque()         # new connections, on their way to the thread
        self._mail: deque[tuple[Any, Message]] = deque()              # the loop's events, on their way to the thread
        self._selector = selectors.DefaultSelector()
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._rope.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._peers: set[Peer] = set()
        self._closing = False
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------ called from other threads

    def start(self) -> None:
        threading.stack_size(STACK)
        self._thread = threading.Thread(target=self._run, name="post", daemon=True)
        self._thread.start()
        threading.stack_size(0)

    def adopt(self, channel: Channel) -> None:
        self._adopted.append(channel)
        self._ring()

    def tell(self, events: Collection[tuple[Any, Message]]) -> None:
        self._mail.extend(events)
        if not all(self._can_wait(sequence.reply, message) for sequence, message in events):
            self._ring()

    def finish(self) -> None:
        """End every request with `Failed`, give the readers a moment to take it, and stop."""
        self._closing = True
        self._ring()
        if self._thread:
            self._thread.join(FAREWELL * 2)

    def _can_wait(self, peer: Peer, message: Message) -> bool:
        """Whether nobody is to be woken for it yet: not its reader, nor the post on a core that a decode works on."""
        return peer.patient and isinstance(message, Piece) and self.clock() - peer.flushed < LUMP

    def _ring(self) -> None:
        try:
            self._rope.send(b"!")
        except BlockingIOError:
            pass        # the bell is ringing already

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
            self._say_farewell()
        except BaseException:
            log.critical("the runner's post has died; the runner ends", exc_info=True)
            os._exit(1)

    def _turn(self) -> None:
        for key, mask in self._selector.select(1.0):
            if key.fileobj is self._bell:
                self._bell.recv(4096)
            elif isinstance(key.fileobj, Peer) and key.fileobj in self._peers:
                self._attend(key.fileobj, mask)
        while self._adopted:
            peer = Peer(self._adopted.popleft())
            self._peers.add(peer)
            self._selector.register(peer, selectors.EVENT_READ)
        for peer in self._sort_mail():
            self._flush(peer)
        self._give_up_the_stuck()

    def _attend(self, peer: Peer, mask: int) -> None:
        try:
            for message in peer.read() if mask & selectors.EVENT_READ else ():
                self._hear(peer, message)
        except WireError as error:
            log.debug("a connection ends: %s", error)
            self._drop(peer)
        else:
            self._flush(peer)

    def _hear(self, peer: Peer, message: Message) -> None:
        """Act on one message. While a request runs on the connection, whatever is said cancels it."""
        if peer.sequence:
            self.desk.cancel(peer.sequence)
        elif isinstance(message, GetStats):
            peer.post(self.desk.stats())
        elif isinstance(message, Count):
            peer.post(self._try("", lambda: self.desk.count(message)))
        elif isinstance(message, Tokenize | Detokenize):
            peer.post(self._try("", lambda: self.desk.tokens(message)))
        elif isinstance(message, Prepare):
            self._try("", lambda: self.desk.ahead(message))
        elif isinstance(message, Forget):
            self.desk.forget(message)
        elif isinstance(message, Generate | Embed | Rank):
            if failed := self._try(message.id, lambda: self._begin(peer, message)):
                peer.post(failed)
        else:
            raise WireError(f"{type(message).__name__} is not said to a runner")

    def _begin(self, peer: Peer, message: Generate | Embed | Rank) -> None:
        sequence = self.desk.prepare(message)
        sequence.reply, peer.sequence = peer, sequence
        peer.patient = isinstance(message, Generate) and not message.stream
        self.desk.begin(sequence)

    def _try(self, request: str, action: Callable[[], Answer]) -> Answer | Failed:
        """The action's answer, or a `Failed` that says why there is none."""
        try:
            return action()
        except ParleyError as error:
            return Failed(id=request, code=error.code, message=error.message, retry_after=error.retry_after,
                          details=error.told())
        except Exception:
            log.exception("a request could not be prepared")
            return Failed(id=request, code="internal_error", message="the runner could not prepare this request")

    def _sort_mail(self) -> list[Peer]:
        """Put the loop's events into the outboxes of those who asked, whom it returns in the order of their events;
        whoever is gone gets nothing."""
        touched: dict[Peer, None] = {}
        while self._mail:
            sequence, message = self._mail.popleft()
            peer = sequence.reply
            if peer in self._peers and peer.sequence is sequence:
                peer.post(message)
                if not self._can_wait(peer, message):
                    touched[peer] = None
                if isinstance(message, Done | Vectors | Ranked | Failed):
                    peer.sequence = None
        return list(touched)

    def _flush(self, peer: Peer) -> None:
        if peer not in self._peers:
            return
        try:
            done = peer.flush(self.clock())
        except WireError as error:
            log.debug("a connection ends: %s", error)
            self._drop(peer)
        else:
            self._selector.modify(peer, selectors.EVENT_READ | (0 if done else selectors.EVENT_WRITE))

    def _give_up_the_stuck(self) -> None:
        oldest = self.clock() - PATIENCE
        for peer in [peer for peer in self._peers if peer.stuck is not None and peer.stuck < oldest]:
            log.warning("a reader took nothing for %.0f s; its connection is closed", PATIENCE)
            self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        self._peers.discard(peer)
        self._selector.unregister(peer)
        if peer.sequence:
            self.desk.cancel(peer.sequence)
            peer.sequence = None
        peer.close()

    def _say_farewell(self) -> None:
        self._sort_mail()
        until = self.clock() + FAREWELL
        for peer in list(self._peers):
            if peer.sequence:
                peer.post(Failed(id=peer.sequence.id, code="unavailable", retry_after=1,
                                 message="the model is being stopped; try again in a moment"))
            while not self._gone_or_told(peer) and self.clock() < until:
                time.sleep(0.01)

    def _gone_or_told(self, peer: Peer) -> bool:
        try:
            return peer.flush(self.clock())
        except WireError:
            return True
