"""How a data folder's sessions are opened: with the right key or not at all, old ones taken over first."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from services.errors import ConfigError, ParleyError, Unavailable
from services.settings import Settings
from services.store import redis_client, sealing, takeover
from services.store.crypto import SharedCipher
from services.store.files import FileStore
from services.store.jobs import JobStore, Limits
from services.store.jobs_sqlite import SqliteJobs
from services.store.kept import Kept, KeptInFiles
from services.store.knowledge import Library
from services.store.knowledge_sqlite import SqliteLibrary
from services.store.uploads import UploadStore
from services.store.uploads_sqlite import SqliteUploads

if TYPE_CHECKING:
    from services.store.redis_sessions import RedisStore

log = logging.getLogger("parley.store")


def open_store(settings: Settings, prepare: bool = True) -> FileStore | RedisStore:
    """The sessions of `settings.data_dir`, or with STORE=redis those in Redis. `prepare`, at the server's start:
    encrypt what is plain in the folder, take over a seed's sessions.

    ConfigError for a wrong or missing DATA_KEY, or a sessions.json that cannot be read: never an empty store.
    """
    if settings.store == "redis":
        return _open_shared(settings, prepare)
    return _open_files(settings, prepare)


def _open_shared(settings: Settings, prepare: bool) -> RedisStore:
    """Whoever is not the server's start may find Redis later."""
    if prepare:
        redis_client.wait_for(client := redis_client.connect(settings))
        redis_client.check_durable(client)
        if _open_files(settings, prepare).owners():
            log.warning("STORE=redis: the sessions in %s are not used; `main.py sessions export` with STORE=files, and "
                        "`import` with STORE=redis, bring them along", settings.data_dir)
    store = _shared(settings)
    with suppress(Unavailable):
        store.check()
    return store


def _shared(settings: Settings) -> RedisStore:
    from services.store import redis_link, redis_sessions
    cipher = None if settings.data_key is None else SharedCipher(settings.data_key)
    return redis_sessions.RedisStore(
        redis_link.linked(settings, redis_sessions.ROOM, redis_sessions.STEPS), cipher)


def look_at_redis(settings: Settings) -> list[str]:
    """What of a crash would be lost. The ConfigError or Unavailable that a start would end with or wait for."""
    found = redis_client.losses(redis_client.connect(settings))
    if settings.store == "redis":
        _shared(settings).check(make=False)
    return found


def _open_files(settings: Settings, prepare: bool) -> FileStore:
    _check_knowledge(settings)
    with _told(settings.data_dir):
        store = FileStore(settings.data_dir, sealing.open_cipher(settings.data_dir, settings.data_key, make=prepare))
        if prepare:
            sealing.seal_plain(store)
            SqliteLibrary(settings.data_dir, store.cipher).seal()
            with closing(SqliteJobs(settings.data_dir, store.cipher)) as jobs:
                jobs.seal()
            SqliteUploads(settings.data_dir, store.cipher).seal()
            takeover.take_over(store)
        return store


def open_library(settings: Settings) -> Library:
    """The knowledge bases: in `settings.data_dir`, or in the PostgreSQL that KNOWLEDGE_URL names."""
    if settings.knowledge_url is None:
        return SqliteLibrary(settings.data_dir, sealing.open_cipher(settings.data_dir, settings.data_key))
    from services.store.knowledge_postgres import PostgresLibrary
    return PostgresLibrary(settings.knowledge_url)


def open_jobs(settings: Settings) -> JobStore:
    """The queue: in `settings.data_dir`, or in the Redis that REDIS_URL or REDIS_HOST names."""
    limits = Limits(kept=settings.job_kept, per_owner=settings.jobs_per_key)
    if not redis_client.configured(settings):
        return SqliteJobs(settings.data_dir, sealing.open_cipher(settings.data_dir, settings.data_key), limits)
    from services.store.jobs_redis import RedisJobs
    cipher = None if settings.data_key is None else SharedCipher(settings.data_key)
    return RedisJobs(redis_client.connect(settings), settings.redis_namespace, cipher, limits)


def open_uploads(settings: Settings) -> UploadStore:
    """The files of clients: where the queue is, so that whoever does a batch can read it."""
    if not redis_client.configured(settings):
        cipher = sealing.open_cipher(settings.data_dir, settings.data_key)
        return SqliteUploads(settings.data_dir, cipher, settings.max_files_bytes)
    from services.store.uploads_redis import RedisUploads
    shared = None if settings.data_key is None else SharedCipher(settings.data_key)
    return RedisUploads(redis_client.connect(settings, text=False), settings.redis_namespace, shared,
                        settings.max_files_bytes)


def open_kept(settings: Settings) -> Kept:
    """The answers kept for retries: in `settings.data_dir`, or with STORE=redis in Redis."""
    if settings.store == "files":
        return KeptInFiles(settings.data_dir / "idempotency",
                           sealing.open_cipher(settings.data_dir, settings.data_key))
    from services.store import redis_kept, redis_link
    cipher = None if settings.data_key is None else SharedCipher(settings.data_key)
    return redis_kept.KeptInRedis(redis_link.linked(settings, redis_kept.ROOM, redis_kept.STEPS), cipher)


def check_store(settings: Settings) -> None:
    """The ConfigError that `open_store` at a start would end with. Changes nothing, also beside a running server."""
    _check_knowledge(settings)
    with _told(settings.data_dir):
        sealing.check_key(settings.data_dir, settings.data_key)
        if os.path.lexists(settings.data_dir / "sessions"):
            FileStore(settings.data_dir)
        takeover.check(settings.data_dir)


def _check_knowledge(settings: Settings) -> None:
    if settings.knowledge_url is not None and settings.data_key is not None:
        raise ConfigError("KNOWLEDGE_URL and DATA_KEY are both set, but PostgreSQL searches the texts and vectors as "
                          "they are, so they cannot be encrypted there: leave KNOWLEDGE_URL out, or run with an "
                          "encrypted disk under PostgreSQL and without DATA_KEY")


@contextmanager
def _told(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except TimeoutError as error:
        raise ConfigError(f"{data_dir} is in use by another process: {error}") from None
    except ParleyError as error:
        raise ConfigError(f"the sessions in {data_dir} cannot be used: {error.message}") from error
