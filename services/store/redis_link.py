"""One room of names in Redis and the steps (Lua) that work on it, each done whole or not at all.

A step may reach Redis twice, since a call whose connection breaks is sent again: each is written to have the effect of
one call then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from services.errors import ParleyError, Unavailable
from services.settings import Settings
from services.store import redis_client

if TYPE_CHECKING:
    import redis

log = logging.getLogger("parley.store")
LEASE = 10.0                # seconds after which what a process holds in Redis is free, once it has died
RENEWED = LEASE / 3         # seconds between two words that it has not
SPARED = 1.0                # seconds in which nobody else waits for a Redis that was too slow for one

# Each of the locks ARGV[2], ARGV[4] … that still has its token ARGV[3], ARGV[5] … lasts ARGV[1] ms from now.
RENEW = """
for at = 2, #ARGV, 2 do
  if redis.call('GET', KEYS[1] .. ARGV[at]) == ARGV[at + 1] then
    redis.call('PEXPIRE', KEYS[1] .. ARGV[at], ARGV[1])
  end
end
"""


class Link:
    """Steps by name over the names that begin with `prefix`. Replies are bytes. Any thread may use it."""

    def __init__(self, client: redis.Redis, namespace: str, room: str, steps: Mapping[str, str]) -> None:
        self.client: Any = client                   # whose types cannot tell it from the one for asyncio
        self.prefix = f"{{{namespace}}}:{room}:"    # in braces, so that a cluster keeps all of it in one place
        self._steps = {name: client.register_script(text) for name, text in {"RENEW": RENEW, **steps}.items()}
        self._late = False                          # the last call got no answer in time
        self._spared = 0.0                          # monotonic seconds, from which on one may look
        self._look = threading.Lock()

    def run(self, step: str, *values: str | bytes | float) -> Any:
        """Unavailable (`redis_unavailable`) and StorageFull as `redis_client.told`."""
        with self.told():
            return self._steps[step](keys=[self.prefix], args=values)

    def key(self, name: str) -> str:
        return self.prefix + name

    @contextmanager
    def told(self) -> Iterator[None]:
        """`redis_client.told`; after a call that got no answer in time, one caller at a time and not at once looks
        whether others do, and the others are refused, so that a Redis that hangs does not hold up every thread."""
        late = self._late
        if late and (time.monotonic() < self._spared or not self._look.acquire(blocking=False)):
            raise Unavailable("Redis, which holds this, answers too slowly", code="redis_unavailable", retry_after=2)
        try:
            yield from self._asked()
        finally:
            if late:
                self._look.release()

    def _asked(self) -> Iterator[None]:
        import redis
        try:
            with redis_client.told():
                yield
            self._late = False
        except Unavailable as error:
            self._late = isinstance(error.__cause__, redis.TimeoutError)
            self._spared = time.monotonic() + SPARED
            raise


def linked(settings: Settings, room: str, steps: Mapping[str, str]) -> Link:
    return Link(redis_client.connect(settings, text=False), settings.redis_namespace, room, steps)


class Leases:
    """Locks of this process, kept while it lives: their names in a link's room and their tokens. Any thread may use
    it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._held: dict[str, str] = {}             # name by token; with _renewing under _lock
        self._renewing = False
        self._lock = threading.Lock()

    def hold(self, name: str, token: str) -> None:
        """Goes on with a lock that was just taken for LEASE seconds."""
        with self._lock:
            self._held[token] = name
            if not self._renewing:
                self._renewing = True
                threading.Thread(target=self._renew, name="leases", daemon=True).start()

    def drop(self, token: str) -> None:
        with self._lock:
            self._held.pop(token, None)

    def _renew(self) -> None:
        while True:
            time.sleep(RENEWED)
            with self._lock:
                held = list(self._held.items())
                self._renewing = bool(held)
            if not held:
                return
            try:
                self._link.run("RENEW", round(LEASE * 1000), *(part for token, name in held for part in (name, token)))
            except ParleyError as error:
                log.warning("what this process holds in Redis was not renewed: %s", error.message)
