"""Moving windows in memory: at most so many hits of a name in any stretch of so many seconds.

The counting is `limits`' moving window, exact and without a charge for what it refuses. Its memory storage forgets
through a timer thread that races with `clear` and never lets go of a name once seen, so both are done here instead:
all under one lock, no thread, memory bounded. Its strategies count each limit of a name for itself; here a name's hits
count whatever its limit was then, so that a limit that changes gives nobody a new window.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from limits.storage import MemoryStorage


class Hit(NamedTuple):
    allowed: bool
    remaining: int
    reset: float        # seconds until the oldest hit of those that the limit allows leaves the window


class Windows:
    """Windows of `seconds` for up to `max_names` names; beyond, the one idle for longest is forgotten."""

    def __init__(self, seconds: int = 60, max_names: int = 10_000) -> None:
        self._seconds = seconds
        self._max_names = max_names
        self._lock = threading.Lock()           # owns all below
        self._used: OrderedDict[str, float] = OrderedDict()     # name -> monotonic time, oldest first
        self._storage = _Storage()

    def hit(self, name: str, limit: int, cost: int = 1) -> Hit:
        """Counts `cost` for `name` unless that goes beyond `limit`. `cost` 0 tells whether 1 would be allowed."""
        with self._lock:
            self._touch(name)
            allowed = cost == 0 or self._storage.acquire_entry(name, limit, self._seconds, cost)
            self._storage.trim(name, self._seconds)
            begun, hits = self._storage.get_moving_window(name, limit, self._seconds)
            if hits > limit:        # which was higher
                begun = self._storage.events[name][limit - 1].atime
        reset = min(max(begun + self._seconds - time.time(), 0.0), float(self._seconds))
        return Hit(allowed and (cost > 0 or hits < limit), max(limit - hits, 0), reset)

    def __len__(self) -> int:
        """Names that are remembered."""
        return len(self._used)

    def _touch(self, name: str) -> None:
        now = time.monotonic()
        self._used[name] = now
        self._used.move_to_end(name)
        while len(self._used) > self._max_names or next(iter(self._used.values())) + self._seconds < now:
            self._storage.clear(self._used.popitem(last=False)[0])


class Amounts:
    """What names have used in the last `seconds`, in amounts that are known only afterwards. Safe for threads.

    Up to `max_names` names; beyond, the one idle for longest is forgotten.
    """

    def __init__(self, seconds: float = 60, max_names: int = 10_000,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._max_names, self._clock = seconds, max_names, clock
        self._lock = threading.Lock()
        self._used: OrderedDict[str, deque[tuple[float, int]]] = OrderedDict()

    def add(self, name: str, amount: int) -> None:
        if amount <= 0:
            return
        with self._lock:
            self._recent(name).append((self._clock(), amount))
            self._used.move_to_end(name)
            while len(self._used) > self._max_names:
                self._used.popitem(last=False)

    def wait(self, name: str, limit: int) -> float:
        """Seconds until `name` has used less than `limit`; 0 when it has now."""
        with self._lock:
            if name not in self._used:
                return 0.0
            used, recent = 0, self._recent(name)
            for at, amount in reversed(recent):
                used += amount
                if used >= limit:
                    return max(at + self._seconds - self._clock(), 0.001)
            return 0.0

    def _recent(self, name: str) -> deque[tuple[float, int]]:
        uses = self._used.setdefault(name, deque())
        while uses and uses[0][0] + self._seconds <= self._clock():
            uses.popleft()
        return uses


class _Storage(MemoryStorage):
    """`limits`' storage without its thread. Its owner calls `trim` and `clear`, under a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.timer.cancel()
        self.timer = _Never(0, self.reset)

    def trim(self, key: str, seconds: float) -> None:
        """Forgets the hits that are older than so many seconds: no window looks at them."""
        hits, end = self.events.get(key, []), time.time() - seconds
        while hits and hits[-1].atime < end:
            hits.pop()


class _Never(threading.Timer):
    """Looks started, so that the storage starts no other."""

    def is_alive(self) -> bool:
        return True
