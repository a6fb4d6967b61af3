"""Answers kept for requests that come again, in Redis: whichever server they come to.

A holder's lock is renewed while it runs. Two run one request only when the first was cut off from Redis for more than
LEASE seconds; its session then takes the turn of one of them (`redis_sessions`).

    kept:<owner>/<name>     an answer; it ends by itself
    of:<owner>              the names of an owner's answers by the time of their keeping
    lock:<owner>/<name>     the token of who holds a name
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from services.store import kept
from services.store.crypto import Seals
from services.store.kept import KEPT, Kept
from services.store.redis_link import LEASE, Leases, Link

ROOM = "kept"
LONGEST_PAUSE = 0.25        # seconds between two looks at a name that another holds
# lock, token, milliseconds: 1 when it is ours
_HOLD = """
local holder = redis.call('GET', KEYS[1] .. ARGV[1])
if holder and holder ~= ARGV[2] then
  return 0
end
redis.call('SET', KEYS[1] .. ARGV[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
# lock, token
_FREE = """
if redis.call('GET', KEYS[1] .. ARGV[1]) == ARGV[2] then
  redis.call('DEL', KEYS[1] .. ARGV[1])
end
"""
# owner, name, seconds, most, answer
_SAVE = """
local of, now = KEYS[1] .. 'of:' .. ARGV[1], redis.call('TIME')[1]
local answer = KEYS[1] .. 'kept:' .. ARGV[1] .. '/'
redis.call('SET', answer .. ARGV[2], ARGV[5], 'EX', ARGV[3])
redis.call('ZADD', of, now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', of, '-inf', now - ARGV[3])
redis.call('EXPIRE', of, ARGV[3])
local many = redis.call('ZCARD', of) - ARGV[4]
for _, name in ipairs(many > 0 and redis.call('ZRANGE', of, 0, many - 1) or {}) do
  redis.call('DEL', answer .. name)
  redis.call('ZREM', of, name)
end
"""
# owner, name
_REMOVE = """
local name = ARGV[1] .. '/' .. ARGV[2]
if redis.call('EXISTS', KEYS[1] .. 'lock:' .. name) == 0 then
  redis.call('DEL', KEYS[1] .. 'kept:' .. name)
  redis.call('ZREM', KEYS[1] .. 'of:' .. ARGV[1], ARGV[2])
end
"""
STEPS = {"HOLD": _HOLD, "FREE": _FREE, "SAVE": _SAVE, "REMOVE": _REMOVE}


class KeptInRedis(Kept):
    def __init__(self, link: Link, cipher: Seals | None = None) -> None:
        super().__init__(cipher)
        self._link = link
        self._leases = Leases(link)

    @contextmanager
    def held(self, owner: str, name: str, wait: float) -> Iterator[None]:
        lock, token = f"lock:{owner}/{name}", uuid.uuid4().hex
        try:
            self._hold(lock, token, wait)
            self._leases.hold(lock, token)
            yield
        finally:
            self._leases.drop(token, lambda: self._link.run("FREE", lock, token))

    def _hold(self, lock: str, token: str, wait: float) -> None:
        deadline, pause = time.monotonic() + wait, 0.005
        while not self._link.run("HOLD", lock, token, round(LEASE * 1000)):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{lock} is taken")
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(pause * 1.5, LONGEST_PAUSE)

    def load(self, owner: str, name: str) -> bytes | None:
        with self._link.told():
            found: bytes | None = self._link.client.get(self._link.key(f"kept:{owner}/{name}"))
        return None if found is None else self.unpack(owner, name, found)

    def save(self, owner: str, name: str, data: bytes) -> None:
        self._link.run("SAVE", owner, name, round(KEPT), kept.MOST, self.pack(owner, name, data))

    def remove(self, owner: str, name: str) -> None:
        self._link.run("REMOVE", owner, name)

    def prune(self, now: float) -> None:
        """Redis does it by itself."""
