"""Moving windows in memory: at most so many hits of a name in any stretch of so many seconds.

The counting is `limits`' moving window, exact and without a charge for what it refuses. Its memory storage forgets
through a timer thread that races with `clear` and never lets go of a name once seen, so both are done here instead:
all under one lock, no thread, memory bounded.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter


class Hit(NamedTuple):
    allowed: bool
    remaining: int
    reset: float        # seconds until the oldest hit leaves the window


class Windows:
    """Windows of `seconds` for up to `max_names` names; beyond, the one idle for longest is forgotten."""

    def __init__(self, seconds: int = 60, max_names: int = 10_000) -> None:
        self._seconds = seconds
        self._max_names = max_names
        self._lock = threading.Lock()           # owns all below
        self._used: OrderedDict[str, float] = OrderedDict()     # storage key -> monotonic time, oldest first
        self._storage = _Storage()
        self._windows = MovingWindowRateLimiter(self._storage)

    def hit(self, name: str, limit: int, cost: int = 1) -> Hit:
        """Counts `cost` for `name` unless that goes beyond `limit`. `cost` 0 tells whether 1 would be allowed."""
        item = RateLimitItemPerSecond(limit, self._seconds)
        with self._lock:
            self._touch(item.key_for(name))
            if cost:
                allowed = self._windows.hit(item, name, cost=cost)
                self._storage.trim(item.key_for(name), limit)
            else:
                allowed = self._windows.test(item, name, cost=1)
            reset_at, remaining = self._windows.get_window_stats(item, name)
        return Hit(allowed, max(remaining, 0), min(max(reset_at - time.time(), 0.0), float(self._seconds)))

    def __len__(self) -> int:
        """Names that are remembered."""
        return len(self._used)

    def _touch(self, key: str) -> None:
        now = time.monotonic()
        self._used[key] = now
        self._used.move_to_end(key)
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

    def trim(self, key: str, length: int) -> None:
        """Forgets all but the `length` newest hits, which are all that a window looks at."""
        del self.events.get(key, [])[length:]


class _Never(threading.Timer):
    """Looks started, so that the storage starts no other."""

    def is_alive(self) -> bool:
        return True
