"""How Redis is connected to, and what its failures mean. One client for all stores of a process; any thread may use it.

Connections are given up as soon as a reply is late or cut short, so none is ever read by the next caller (row X3).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from services.errors import ConfigError, ParleyError, StorageFull, Unavailable
from services.settings import Settings

if TYPE_CHECKING:
    import redis

log = logging.getLogger("parley.store")
CONNECT = 2.0               # seconds
ANSWER = 5.0                # seconds
START = 30.0                # seconds that a start waits for Redis
QUIET = 10.0                # seconds between two lines of the log about what is wrong
CREDENTIALS = "REDIS_USR and REDIS_PWD, or REDIS_URL"
_logged = -QUIET            # monotonic seconds


def configured(settings: Settings) -> bool:
    return settings.redis_url is not None or settings.redis_host is not None


def connect(settings: Settings, text: bool = True) -> redis.Redis:
    """A client, not connected yet, whose replies are texts, else bytes. ConfigError for settings that name no Redis."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
    assert configured(settings)
    # Once more on a connection that turns out to be closed, after a restart of Redis for one; never after a timeout.
    options: dict[str, Any] = {
        "decode_responses": text, "socket_connect_timeout": CONNECT, "socket_timeout": ANSWER,
        "socket_keepalive": True, "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))}
    if settings.redis_url is not None:
        if settings.redis_url.startswith("unix:"):
            options.pop("socket_keepalive")
        try:
            return redis.Redis.from_url(settings.redis_url, **options)
        except ValueError as error:
            raise ConfigError(f"REDIS_URL=(not shown): {error}") from None
    options.update(username=settings.redis_user, password=settings.redis_password, ssl=settings.redis_tls)
    return redis.Redis(host=settings.redis_host or "", port=settings.redis_port, db=settings.redis_db, **options)


@contextmanager
def told() -> Iterator[None]:
    """redis' errors as `Unavailable` (`redis_unavailable`) and `StorageFull`. What it says is for the log alone."""
    import redis
    try:
        yield
    except redis.RedisError as error:
        raise _meaning(error) from error


def _meaning(error: redis.RedisError) -> ParleyError:
    import redis
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return StorageFull("Redis has no memory left (maxmemory): give it more, nothing that was saved is lost")
    _log(error)
    return Unavailable("Redis, which holds this, does not answer as it should; the server's log says why",
                       code="redis_unavailable", retry_after=2)


def _log(error: redis.RedisError) -> None:
    """Now and then: while Redis is away, every call says the same."""
    import redis
    global _logged
    if time.monotonic() - _logged > QUIET:
        _logged = time.monotonic()
        # long commands without a password are refused as "Protocol error: unauthenticated bulk length" or the like
        shut = isinstance(error, redis.AuthenticationError) or "unauthenticated" in str(error)
        log.warning("Redis: %s%s", error, f"; check {CREDENTIALS}" if shut else "")


def wait_for(client: redis.Redis, seconds: float = START) -> None:
    """Until Redis answers, at a server's start. ConfigError when it does not, or does not let us in."""
    import redis
    deadline, told_once = time.monotonic() + seconds, False
    while True:
        try:
            client.ping()
            return
        except redis.AuthenticationError as error:
            raise ConfigError(f"Redis does not let this server in ({error}): check {CREDENTIALS}") from None
        except redis.RedisError as error:
            if time.monotonic() > deadline:
                raise ConfigError(f"Redis does not answer ({error}): start it, or check REDIS_URL or REDIS_HOST"
                                  ) from None
            if not told_once:
                log.warning("waiting up to %g s for Redis: %s", seconds, error)
            told_once = True
        time.sleep(0.2)


def check_durable(client: redis.Redis) -> None:
    """Warn of what `losses` finds. Raises as `told`."""
    for loss in losses(client):
        log.warning("%s", loss)


def losses(client: redis.Redis) -> list[str]:
    """Where a crash of Redis, or a want of memory, would lose what was acknowledged. Raises as `told`."""
    import redis
    with told():
        try:
            found: Any = client.config_get("appendonly", "appendfsync", "maxmemory-policy")
        except redis.ResponseError:
            return []                       # a hosted one, which keeps its configuration to itself
    told_of = []
    if found.get("appendonly") == "no":
        told_of.append("Redis runs with appendonly no: what it took in the last minutes is lost when it dies; "
                       "set appendonly yes and appendfsync always")
    elif found.get("appendfsync", "always") != "always":
        told_of.append(f"Redis runs with appendfsync {found['appendfsync']}: what it took in the last second or so is "
                       "lost when its machine dies; always loses nothing")
    if found.get("maxmemory-policy", "noeviction") != "noeviction":
        told_of.append(f"Redis runs with maxmemory-policy {found['maxmemory-policy']}: it may throw away what it holds "
                       "for us; set noeviction")
    return told_of
