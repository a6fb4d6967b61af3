"""The supervisor's socket: who needs a runner, a place or a figure asks here (`services.wire`).

One thread per connection; what a connection holds (a lease, a place) ends with it, however its owner ended.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from services import wire
from services.engine.failures import failed_of
from services.engine.states import Lease
from services.errors import BadRequest, ParleyError

log = logging.getLogger("parley.engine")


class Lender(Protocol):
    """What the supervisor is to this socket."""

    def lease(self, spec: wire.RunnerSpec, select: bool = False, keep: float = 0.0, affinity: str = "",
              gone: Callable[[], bool] = lambda: False) -> Lease: ...

    def status(self) -> wire.StatusOf: ...

    def fate(self, address: str) -> wire.Failed: ...

    def forget(self, message: wire.Forget) -> None: ...

    def keep(self, spec: wire.RunnerSpec, keep: float) -> None: ...


class Admission(Protocol):
    """Who may start a request now. A place that `admit` gave is given back by one `release`."""

    def admit(self, request: wire.Admit) -> wire.Admitted | wire.Failed: ...

    def release(self, key: str) -> None: ...

    def charge(self, key: str, requests: int, prompt_tokens: int, completion_tokens: int) -> None: ...

    def usage(self, key: str) -> wire.Usage: ...


class Figures(Protocol):
    """All that is counted for those who watch the server."""

    def answered(self, charge: wire.Charge) -> None: ...

    def served(self, report: wire.Report) -> None: ...

    def text(self, runners: list[wire.RunnerState], queue: wire.QueueSize) -> str: ...


class ControlServer:
    def __init__(self, address: str, authkey: bytes, lender: Lender, admission: Admission, figures: Figures) -> None:
        self.address = address
        self.authkey = authkey
        self.lender = lender
        self.admission = admission
        self.figures = figures
        self._door: wire.Door | None = None

    def start(self) -> None:
        self._door = wire.Door(self.address, self.authkey)
        self._thread = threading.Thread(target=self._door.serve, args=(self._converse,), name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections. Those that are open live as long as their owners."""
        if self._door:
            self._door.close()
            self._thread.join()

    def _converse(self, channel: wire.Channel) -> None:
        with channel, contextlib.ExitStack() as held:
            try:
                while message := channel.receive():
                    if answer := self._answer(message, held, channel.speaks):
                        channel.send(answer)
            except wire.WireError as error:
                log.debug("a control connection ended: %s", error)

    def _answer(self, message: wire.Message, held: contextlib.ExitStack,
                gone: Callable[[], bool]) -> wire.Message | None:
        try:
            return self._dispatch(message, held, gone)
        except ParleyError as error:
            return failed_of(error)
        except Exception:
            log.exception("a %s went wrong", type(message).__name__)
            return wire.Failed(code="internal_error", message="something went wrong in the server; its log says what")

    def _dispatch(self, message: wire.Message, held: contextlib.ExitStack,
                  gone: Callable[[], bool]) -> wire.Message | None:
        """`gone`: whether the caller has hung up, or speaks before it was answered, which nobody does."""
        if isinstance(message, wire.Ensure):
            lease = self.lender.lease(message.spec, message.select, message.keep, message.affinity, gone)
            held.callback(lease.release)
            return lease.at
        if isinstance(message, wire.Admit):
            answer = self.admission.admit(message)
            if isinstance(answer, wire.Admitted):
                held.callback(self.admission.release, message.key)
            return answer
        if isinstance(message, wire.Charge):
            self.admission.charge(message.key, message.requests, message.prompt_tokens, message.completion_tokens)
            self.figures.answered(message)
            return None
        if isinstance(message, wire.Report):
            self.figures.served(message)
            return None
        if isinstance(message, wire.Fate):
            return self.lender.fate(message.address)
        if isinstance(message, wire.Forget):
            self.lender.forget(message)
            return None
        if isinstance(message, wire.Keep):
            self.lender.keep(message.spec, message.keep)
            return None
        if isinstance(message, wire.GetMetrics):
            return wire.Metrics(text=self.figures.text(self.lender.status().runners, message.queue))
        if isinstance(message, wire.GetUsage):
            return self.admission.usage(message.key)
        if isinstance(message, wire.Status):
            return self.lender.status()
        raise BadRequest(f"the supervisor does not take {type(message).__name__}")
