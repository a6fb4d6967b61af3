"""Signals, acted on in a thread instead of wherever they come in between."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable


class Signals(threading.Thread):
    """SIGTERM, SIGINT and SIGHUP, acted on in a thread of their own.

    A Python handler runs in the middle of whatever the main thread does, also of taking a lock that it would need
    itself; so the handlers do nothing, and the interpreter writes each signal's number to a socket that is read here.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self, act: Callable[[int], None]) -> None:
        super().__init__(name="signals", daemon=True)
        self._act = act
        self._arrived, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        for number in self.NUMBERS:
            signal.signal(number, lambda *_: None)

    def run(self) -> None:
        while True:
            for number in self._arrived.recv(64):
                if number in self.NUMBERS:
                    self._act(number)
