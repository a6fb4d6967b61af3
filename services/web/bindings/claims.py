"""What was taken in once is not taken in again: by no other process of the server, and by none after a restart.

An empty file for each request, named by a digest of what the request is known by, is made before anything is done:
who makes it has the request. Platforms send one again within minutes, Slack within a day at most.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from services.store import disk

KEPT = 24 * 3600.0          # seconds
PRUNE_SECONDS = 600.0


class Claims:
    """The claims below `folder`. Any thread may make one. `now` gives Unix time."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._folder, self._now = folder, now
        self._lock = threading.Lock()               # guards what follows
        self._pruned = float("-inf")                # monotonic seconds

    def first(self, digest: str) -> bool:
        """Whether nobody had claimed it; it is claimed now, durably. Raises StorageFull or Unavailable."""
        disk.make_dirs(self._folder.parent, follow=False)
        disk.make_dirs(self._folder, follow=False)
        self._prune()
        with disk.told(self._folder):
            try:
                os.close(disk.open_file(self._folder / digest, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
            disk.fsync_dir(self._folder)
        return True

    def _prune(self) -> None:
        with self._lock:
            if time.monotonic() - self._pruned < PRUNE_SECONDS:
                return
            self._pruned = time.monotonic()
        prune(self._folder, self._now())


def prune(folder: Path, now: float | None = None) -> None:
    """Removes what is older than `KEPT` in `folder`. Raises ParleyErrors."""
    with disk.told(folder):
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):       # another process was there first
                if (now or time.time()) - os.lstat(folder / name).st_mtime >= KEPT:
                    os.unlink(folder / name)
