"""One room of names in Redis and the steps (Lua) that work on it, each done whole or not at all.

A step may reach Redis twice, since a call whose connection breaks is sent again: each is written to have the effect of
one call then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from services.errors import ParleyError, Unavailable
from services.settings import Settings
from services.store import redis_client

if TYPE_CHECKING:
    import redis

log = logging.getLogger("parley.store")
LEASE = 10.0                # seconds after which what a process holds in Redis is free, once it has died
RENEWED = LEASE / 3         # seconds between two words that it has not
AGAIN = 0.1                 # seconds between two looks whether a Redis that was too slow answers

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
        self._late = False                          # a call got no answer in time, and none has since
        self._lock = threading.Lock()

    def run(self, step: str, *values: str | bytes | float) -> Any:
        """Unavailable (`redis_unavailable`) and StorageFull as `redis_client.told`."""
        with self.told():
            return self._steps[step](keys=[self.prefix], args=values)

    def key(self, name: str) -> str:
        return self.prefix + name

    @contextmanager
    def told(self) -> Iterator[None]:
        """`redis_client.told`. A Redis that hangs does not hold up every thread: from the first call that got no answer
        in time on, all others are refused at once until it answers again."""
        import redis
        if self._late:
            raise Unavailable("Redis, which holds this, answers too slowly", code="redis_unavailable", retry_after=2)
        try:
            with redis_client.told():
                yield
        except Unavailable as error:
            if isinstance(error.__cause__, redis.TimeoutError):
                self._await_answer()
            raise

    def _await_answer(self) -> None:
        with self._lock:
            if not self._late:
                self._late = True
                threading.Thread(target=self._ask, args=(self.client,), name="redis", daemon=True).start()

    def _ask(self, client: Any) -> None:
        import redis
        while True:
            try:
                client.ping()
                break
            except redis.TimeoutError:
                time.sleep(AGAIN)
            except redis.RedisError:        # away, which every call tells at once
                break
        self._late = False


def linked(settings: Settings, room: str, steps: Mapping[str, str]) -> Link:
    return Link(redis_client.connect(settings, text=False), settings.redis_namespace, room, steps)


class Leases:
    """Locks of this process, kept while it lives: their names in a link's room and their tokens. Any thread may use
    it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._held: dict[str, str] = {}             # name by token; all under _lock
        self._renewing = False
        self._behind: deque[tuple[float, Callable[[], object]]] = deque()   # what ends them, until when it is worth it
        self._dropping = False
        self._lock = threading.Lock()

    def hold(self, name: str, token: str) -> None:
        """Goes on with a lock that was just taken for LEASE seconds."""
        with self._lock:
            self._held[token] = name
            if not self._renewing:
                self._renewing = True
                threading.Thread(target=self._renew, name="leases", daemon=True).start()

    def drop(self, token: str, let_go: Callable[[], object]) -> None:
        """Ends a lock by `let_go`; where Redis is away, as soon as it is back."""
        with self._lock:
            self._held.pop(token, None)
        if _done(let_go):
            return
        with self._lock:
            self._behind.append((time.monotonic() + LEASE, let_go))
            if not self._dropping:
                self._dropping = True
                threading.Thread(target=self._drop_later, name="leases", daemon=True).start()

    def _drop_later(self) -> None:
        while True:
            with self._lock:
                while self._behind and self._behind[0][0] < time.monotonic():
                    self._behind.popleft()          # it has ended by itself
                self._dropping = bool(self._behind)
                if not self._behind:
                    return
                let_go = self._behind[0][1]
            if not _done(let_go):
                time.sleep(AGAIN)
                continue
            with self._lock:
                self._behind.popleft()

    def _renew(self) -> None:
        while True:
            time.sleep(RENEWED)
            with self._lock:
                held = list(self._held.items())
                self._renewing = bool(held)
            if not held:
                return
            if not _done(partial(self._link.run, "RENEW", round(LEASE * 1000),
                                 *(part for token, name in held for part in (name, token)))):
                log.warning("what this process holds in Redis was not renewed")


def _done(call: Callable[[], object]) -> bool:
    try:
        call()
    except ParleyError:
        return False
    return True
