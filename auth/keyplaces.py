"""Where the list of keys is: a file of this server, or Redis, where several servers have it together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from auth import keyfile
from auth.keyfile import Signature
from services.errors import ParleyError, Unavailable
from services.settings import Settings
from services.store import disk

FILE_NAME = "api_keys.json"
LOCK_WAIT = 30.0                # seconds a change waits for another one
UNREACHABLE: Signature = (-1,)


class Place(Protocol):
    """`name` is for clients, `where` for the log."""

    name: str
    where: str

    def signature(self) -> Signature:
        """What is there now; () when nothing is. Raises nothing: what cannot be looked at has one of its own."""

    def read(self) -> tuple[bytes, Signature | None]:
        """The content and its signature, None when that is not to be trusted. FileNotFoundError; ParleyError."""

    def changing(self) -> AbstractContextManager[None]:
        """Holds off other changes, where that can be done."""

    def write(self, data: bytes, before: Signature | None) -> bool:
        """Durable on return. False when another was faster: it changed what had the signature `before`."""


def place_of(data_dir: Path, settings: Settings) -> Place:
    return InFile(data_dir / FILE_NAME) if settings.store == "files" else InRedis(settings)


class InFile:
    name = FILE_NAME

    def __init__(self, path: Path) -> None:
        self._path, self.where = path, str(path)

    def signature(self) -> Signature:
        return keyfile.signature(self._path)

    def read(self) -> tuple[bytes, Signature | None]:
        return keyfile.read(self._path)

    @contextmanager
    def changing(self) -> Iterator[None]:
        disk.make_dirs(self._path.parent)
        try:
            with disk.locked(self._path, LOCK_WAIT):
                yield
        except TimeoutError:
            raise Unavailable(f"{self.name} is being changed by another process; try again") from None

    def write(self, data: bytes, before: Signature | None) -> bool:
        disk.write_atomic(self._path, data, mode=0o600)
        return True


class InRedis:
    name = where = "the list of keys in Redis"

    def __init__(self, settings: Settings) -> None:
        from services.store.redis_document import STEPS, RedisDocument
        from services.store.redis_link import linked
        self._document = RedisDocument(linked(settings, "keys", STEPS))

    def signature(self) -> Signature:
        try:
            version = self._document.version()
        except ParleyError:
            return UNREACHABLE
        return () if version is None else (int(version, 16),)

    def read(self) -> tuple[bytes, Signature | None]:
        content, version = self._document.read()
        return content, (int(version, 16),)

    @contextmanager
    def changing(self) -> Iterator[None]:
        yield

    def write(self, data: bytes, before: Signature | None) -> bool:
        return self._document.replace(data, f"{before[0]:032x}" if before else None)
