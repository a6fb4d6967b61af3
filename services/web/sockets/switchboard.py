"""All websockets of a web worker: one thread that reads them, and how many there may be.

A request that opens one leaves its conversation here (`expect`) and answers 101; when gunicorn is done with that
response the worker hands the connection over (`adopt`). From then on it is no request any more.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol as Shape

from services.errors import TooManyRequests, Unavailable
from services.settings import Settings
from services.web.drain import Drain
from services.web.sockets.line import GOING_AWAY, Limits, Line

TICK = 1.0                  # seconds between two looks at what time has run out for
MOST_KEYLESS = 100          # sockets whose key is still to come
PREFIX_BYTES = 64 * 1024    # that a message may have beside its prompt
log = logging.getLogger("parley.web")


class Call(Shape):
    """What is said on a line. All of it is called in the switchboard's thread, and does not wait."""

    @property
    def busy(self) -> bool:
        """Whether an answer is being made."""

    def begin(self, line: Line) -> None: ...

    def heard(self, text: str) -> None: ...

    def over(self) -> None:
        """The line is gone."""

    def tick(self, now: float) -> None: ...


@dataclass(frozen=True)
class _Held:
    line: Line
    call: Call
    done: Callable[[], None]        # tells gunicorn that the connection is gone


class Switchboard:
    """One a worker. Its thread starts with the first socket."""

    def __init__(self, settings: Settings, drain: Drain) -> None:
        self._limits = Limits(message_bytes=settings.max_prompt_bytes + PREFIX_BYTES)
        self._most, self._most_of_key = settings.max_sockets, settings.max_sockets_per_key
        self._drain = drain
        self._lock = threading.Lock()               # owns the four below
        self._places: dict[Call, str] = {}          # that are taken: the key's id, "" for none yet
        self._owners: Counter[str] = Counter()      # how many of each
        self._expected: dict[int, Call] = {}        # id of gunicorn's socket -> who is to have it
        self._arrived: list[_Held] = []
        self._selector: selectors.BaseSelector | None = None
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._left = False

    # ------------------------------------------------------------ how many

    def reserve(self, call: Call, owner: str) -> None:
        """Take a place for a socket of a key, "" for none yet. Raises `TooManyRequests`, `Unavailable`."""
        with self._lock:
            if len(self._places) >= self._most or (not owner and self._owners[""] >= MOST_KEYLESS):
                raise Unavailable("there are as many websockets as there can be (MAX_SOCKETS); try again shortly",
                                  code="busy")
            self._check_key(owner)
            self._places[call] = owner
            self._owners[owner] += 1

    def claim(self, call: Call, owner: str) -> None:
        """The key of a socket that had none has come. Raises `TooManyRequests`; the place is without a key then."""
        with self._lock:
            self._check_key(owner)
            if call in self._places:
                self._owners.subtract([self._places[call]])
                self._places[call] = owner
                self._owners[owner] += 1

    def _check_key(self, owner: str) -> None:
        if owner and self._owners[owner] >= self._most_of_key:
            raise TooManyRequests(f"this key may have {self._most_of_key} websockets at the same time "
                                  "(MAX_SOCKETS_PER_KEY); close one", retry_after=5)

    def _free(self, call: Call) -> None:
        with self._lock:
            owner = self._places.pop(call)
            self._owners[owner] -= 1
            if not self._owners[owner]:
                del self._owners[owner]

    # ------------------------------------------------------------ from gunicorn's threads

    def expect(self, sock: socket.socket, call: Call) -> None:
        """`sock` is to be `call`'s line once the response is sent. Its place is reserved."""
        with self._lock:
            self._expected[id(sock)] = call

    def adopt(self, sock: socket.socket, rest: Callable[[], bytes], done: Callable[[], None]) -> bool:
        """Whether `sock` is a websocket: then it is ours now. `done` is called once it is closed."""
        with self._lock:
            call = self._expected.pop(id(sock), None)
            if call is None:
                return False
            self._arrived.append(_Held(Line(sock, rest(), self._limits), call, done))
            if self._selector is None:
                self._selector = selectors.DefaultSelector()
                self._selector.register(self._woken, selectors.EVENT_READ)
                threading.Thread(target=self._run, args=(self._selector,), name="websockets", daemon=True).start()
        self.wake()
        return True

    def leave(self) -> None:
        """This worker ends: idle sockets are closed, others when their answer is there. May be a signal handler's."""
        self._left = True
        self.wake()

    def wake(self) -> None:
        try:
            self._wake.send(b"\0")
        except BlockingIOError:
            return          # it is awake

    # ------------------------------------------------------------ its own thread

    def _run(self, selector: selectors.BaseSelector) -> None:
        ticked = time.monotonic()
        while True:
            for key, _ in selector.select(TICK):
                if key.data is None:
                    self._woken.recv(4096)
                else:
                    self._safely(selector, key.data, self._read)
            self._take_in(selector)
            if self._left or self._drain.begun or time.monotonic() - ticked >= TICK:
                ticked = time.monotonic()
                for held in [key.data for key in selector.get_map().values() if key.data]:
                    self._safely(selector, held, self._tick)

    def _take_in(self, selector: selectors.BaseSelector) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, []
        for held in arrived:
            selector.register(held.line, selectors.EVENT_READ, held)
            held.call.begin(held.line)
            self._safely(selector, held, self._read)

    def _safely(self, selector: selectors.BaseSelector, held: _Held, act: Callable[[_Held], None]) -> None:
        """What is wrong with one line is no other's trouble."""
        try:
            act(held)
        except Exception:
            log.exception("a websocket is dropped")
            held.line.gone = True
        if held.line.gone:
            selector.unregister(held.line)
            held.line.close()
            self._free(held.call)
            held.call.over()
            held.done()

    def _read(self, held: _Held) -> None:
        for text in held.line.read():
            held.call.heard(text)

    def _tick(self, held: _Held) -> None:
        held.line.tick(time.monotonic())
        held.call.tick(time.monotonic())
        if (self._left or self._drain.begun) and not held.call.busy:
            held.line.end(GOING_AWAY, "the server is stopping")


