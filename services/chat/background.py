"""Answers that run on without a client: which ones do, in whatever process of the server, and which are to stop.

One that runs holds the lock of its name below a folder, so one whose process was killed is known not to run any more.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from services.errors import Conflict
from services.store import disk
from services.store.base import check_names

PATIENCE = 5.0      # seconds that a look of others at a new name may take


class Cancelled(Conflict):
    """The answer was to stop. Told inside of the server only."""

    code = "response_cancelled"


class Background:
    """The running ones below `folder`. Keeps nothing in memory, so each process may have its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def running(self, owner: str, name: str) -> Iterator[None]:
        """`name` of `owner` runs until the block ends."""
        path = self._path(owner, name)
        disk.make_dirs(self._folder, follow=False)
        disk.make_dirs(path.parent, follow=False)
        with disk.locked(path, PATIENCE):
            try:
                yield
            finally:
                for used in (path, _lock_of(path)):
                    with suppress(FileNotFoundError):
                        disk.unlink_durable(used)

    def runs(self, owner: str, name: str) -> bool:
        path = self._path(owner, name)
        if not os.path.lexists(_lock_of(path)):
            return False
        try:
            with disk.locked(path, 0):
                for left in (path, _lock_of(path)):     # by a process that was killed
                    with suppress(FileNotFoundError):
                        disk.unlink_durable(left)
            return False
        except TimeoutError:
            return True

    def cancel(self, owner: str, name: str) -> None:
        """`check` raises from now on, if `name` runs."""
        path = self._path(owner, name)
        if not self.runs(owner, name):
            return
        disk.write_atomic(path, b"", sync_folder=False)
        if not self.runs(owner, name):      # it ended before it could see that
            with suppress(FileNotFoundError):
                disk.unlink_durable(path)

    def check(self, owner: str, name: str) -> None:
        """Raises `Cancelled` when `name` is to stop."""
        if os.path.lexists(self._path(owner, name)):
            raise Cancelled("the response was cancelled")

    def _path(self, owner: str, name: str) -> Path:
        check_names(owner, "any")
        return self._folder / owner / hashlib.sha256(name.encode()).hexdigest()


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")
