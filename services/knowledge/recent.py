"""What was made a moment ago, bounded in age, number and size; and how often somebody may ask. For any thread."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

from services.errors import TooManyRequests

T = TypeVar("T")


class Recent(Generic[T]):
    """At most `most` things of together `room` bytes, none older than `age` seconds; the longest unused goes first."""

    def __init__(self, age: float, most: int, room: int = 0, size: Callable[[T], int] = lambda thing: 0,
                 now: Callable[[], float] = time.monotonic) -> None:
        self._age, self._most, self._room, self._size, self._now = age, most, room, size, now
        self._lock = threading.Lock()
        self._things: OrderedDict[str, tuple[float, T]] = OrderedDict()
        self._used = 0

    def get(self, key: str) -> T | None:
        with self._lock:
            made, thing = self._things.get(key, (0.0, None))
            if thing is None:
                return None
            if self._now() - made > self._age:
                self._drop(key)
                return None
            self._things.move_to_end(key)
            return thing

    def put(self, key: str, thing: T) -> None:
        with self._lock:
            if key in self._things:
                self._drop(key)
            self._things[key] = self._now(), thing
            self._used += self._size(thing)
            while len(self._things) > self._most or self._used > self._room:
                self._drop(next(iter(self._things)))

    def _drop(self, key: str) -> None:
        self._used -= self._size(self._things.pop(key)[1])


class Rate:
    """At most `most` steps in any `span` seconds for each of at most `owners` that stepped last."""

    def __init__(self, most: int, span: float = 60.0, owners: int = 10_000,
                 now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._span, self._owners, self._now = most, span, owners, now
        self._lock = threading.Lock()
        self._steps: OrderedDict[str, deque[float]] = OrderedDict()

    def step(self, owner: str) -> None:
        """Count one. Raises `TooManyRequests` with the time to wait instead when there were too many."""
        with self._lock:
            now, steps = self._now(), self._steps.setdefault(owner, deque())
            self._steps.move_to_end(owner)
            while steps and now - steps[0] >= self._span:
                steps.popleft()
            if len(steps) >= self._most:
                raise TooManyRequests(f"this key has fetched {self._most} pages in {self._span:.0f} s, which is as "
                                      "many as it may", retry_after=self._span - (now - steps[0]))
            steps.append(now)
            while len(self._steps) > self._owners:
                self._steps.popitem(last=False)
