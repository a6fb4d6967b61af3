"""Answers kept for a while under names, for requests that come again; one holder of a name at a time."""

from __future__ import annotations

import json
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from services.store import disk
from services.store.crypto import Seals

KEPT = 24 * 3600.0          # seconds that an answer is kept
MOST = 10_000               # answers kept for one owner; the oldest go first
PRUNE_SECONDS = 600.0


class Kept(ABC):
    """Owners were checked (`store.base.check_names`), names are hex digits. Safe for threads and other processes."""

    def __init__(self, cipher: Seals | None) -> None:
        self.cipher = cipher

    @abstractmethod
    def held(self, owner: str, name: str, wait: float) -> AbstractContextManager[None]:
        """Holds a name; TimeoutError when another does for `wait` seconds. Whoever dies lets go."""

    @abstractmethod
    def load(self, owner: str, name: str) -> bytes | None:
        """What was saved; None when nothing is. ValueError for what was changed or sealed otherwise."""

    @abstractmethod
    def save(self, owner: str, name: str, data: bytes) -> None:
        """`data`, which is JSON, for KEPT seconds."""

    @abstractmethod
    def remove(self, owner: str, name: str) -> None:
        """Removes it, unless somebody holds it."""

    @abstractmethod
    def prune(self, now: float) -> None:
        """Now and then removes what is too old or too much. `now` is Unix time."""

    def pack(self, owner: str, name: str, data: bytes) -> bytes:
        if self.cipher is None:
            return data
        return json.dumps({"box": self.cipher.seal(owner, f"idempotency/{name}", data)}).encode()

    def unpack(self, owner: str, name: str, stored: bytes) -> bytes:
        """ValueError."""
        if self.cipher is None:
            return stored
        try:
            return self.cipher.unseal(owner, f"idempotency/{name}", str(json.loads(stored)["box"]))
        except (KeyError, TypeError):
            raise ValueError("it is not sealed") from None


class KeptInFiles(Kept):
    """As `<folder>/<owner>/<name>.json`. A killed holder's lock ends with it."""

    def __init__(self, folder: Path, cipher: Seals | None = None) -> None:
        super().__init__(cipher)
        self.folder = folder
        self._lock = threading.Lock()
        self._pruned = float("-inf")        # monotonic seconds

    def _path(self, owner: str, name: str) -> Path:
        return self.folder / owner / f"{name}.json"

    @contextmanager
    def held(self, owner: str, name: str, wait: float) -> Iterator[None]:
        disk.make_dirs(self.folder, follow=False)
        disk.make_dirs(self.folder / owner, follow=False)
        with disk.locked(self._path(owner, name), wait):
            yield

    def load(self, owner: str, name: str) -> bytes | None:
        try:
            return self.unpack(owner, name, disk.read_bytes(self._path(owner, name)))
        except FileNotFoundError:
            return None

    def save(self, owner: str, name: str, data: bytes) -> None:
        disk.write_atomic(self._path(owner, name), self.pack(owner, name, data))

    def remove(self, owner: str, name: str) -> None:
        path = self._path(owner, name)
        if path.exists():
            _remove(path)

    def prune(self, now: float) -> None:
        """With a cipher, what is plain goes, too."""
        with self._lock:
            if time.monotonic() - self._pruned < PRUNE_SECONDS:
                return
            self._pruned = time.monotonic()
        with disk.told(self.folder):
            owners = [Path(entry.path) for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False)]
            for owner in owners:
                ages = {Path(entry.path.removesuffix(".lock")): entry.stat(follow_symlinks=False).st_mtime
                        for entry in sorted(os.scandir(owner), key=lambda entry: entry.name, reverse=True)
                        if entry.name.endswith((".json", ".json.lock"))}       # a record's own time after its lock's
                for place, path in enumerate(sorted(ages, key=lambda path: -ages[path])):
                    if place >= MOST or abs(now - ages[path]) >= KEPT or self._is_plain(path):
                        _remove(path)

    def _is_plain(self, path: Path) -> bool:
        if self.cipher is None or not path.exists():
            return False
        return not disk.read_bytes(path).startswith(b'{"box"')


def _remove(path: Path) -> None:
    """Removes a record with its lock file, unless somebody uses it now."""
    with suppress(TimeoutError), disk.locked(path, 0):
        for name in (path, path.with_name(path.name + ".lock")):
            with suppress(FileNotFoundError):
                disk.unlink_durable(name)
