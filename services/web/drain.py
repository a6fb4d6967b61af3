"""Whether this worker is stopping, and how long its running answers may still take.

Owned by the worker; signal handlers begin it, request threads read it. All that they write is single assignments.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.errors import Unavailable


class Drain:
    """`begin` once: from then on new work is refused, and after `seconds` running work is cut."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._deadline: float | None = None
        self._lock = threading.Lock()
        self.working = 0            # answers that no request waits for; under _lock

    @contextmanager
    def work(self) -> Iterator[None]:
        """Around an answer that no request waits for: the stop waits for it as for those in hand."""
        with self._lock:
            self.working += 1
        try:
            yield
        finally:
            with self._lock:
                self.working -= 1

    @property
    def begun(self) -> bool:
        return self._deadline is not None

    @property
    def over(self) -> bool:
        return self._deadline is not None and self._now() >= self._deadline

    def begin(self, seconds: float) -> None:
        """Refuse new work now and cut what runs in `seconds`; a second call can only bring that forward."""
        deadline = self._now() + seconds
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def refuse_new(self) -> None:
        if self.begun:
            raise Unavailable("the server is stopping and takes no new requests; try again shortly", code="draining")

    def check_running(self) -> None:
        if self.over:
            raise Unavailable("the server stopped before the answer was complete; what there is of it is kept",
                              code="draining")
