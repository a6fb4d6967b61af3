"""Logs: files that only grow, one durable append at a time.

A failed append is cut off again. Where even that fails, the good length is remembered, so that the next reader ignores
the tail and the next writer removes it.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from services.store import disk

log = logging.getLogger("parley.store")

# (device, inode) -> (good length, size and mtime_ns then): a failed append that could not be cut off. Only this process
# knows; another sees a whole record that nobody was promised, or a torn one. Guarded by _unsure_lock.
_unsure: dict[tuple[int, int], tuple[int, int, int]] = {}
_unsure_lock = threading.Lock()


def good_length(fd: int) -> int:
    """Bytes of a log that count: all, but for a failed append that could not be cut off."""
    status = os.fstat(fd)
    with _unsure_lock:
        good, size, mtime = _unsure.get((status.st_dev, status.st_ino), (0, -1, -1))
    return good if (size, mtime) == (status.st_size, status.st_mtime_ns) else status.st_size


def cut(fd: int, path: Path, size: int) -> None:
    """Shortens a log to `size` bytes; durable with the next append. The caller holds its lock. Raises OSError."""
    disk.truncate(fd, path, size)
    status = os.fstat(fd)
    with _unsure_lock:
        _unsure.pop((status.st_dev, status.st_ino), None)


def append_durable(fd: int, path: Path, data: bytes) -> None:
    """Adds `data` at the end of the log `fd` (opened with O_APPEND, locked by the caller), durable on return.

    On any failure the log keeps its old length (or is remembered to be cut before the next append) and a ParleyError
    is raised: nobody may be told that `data` was saved.
    """
    end = os.fstat(fd).st_size
    try:
        disk.failpoint("before_append")
        if disk.armed("mid_append"):
            os.write(fd, data[:len(data) // 2])
            disk.failpoint("mid_append")
            os.ftruncate(fd, end)
        disk.write_all(fd, path, data, end)
        disk.failpoint("after_append")
        disk.fsync(fd, path)
    except OSError as error:
        _take_back(fd, path, end)
        raise disk.storage_error(error, path) from error


def _take_back(fd: int, path: Path, end: int) -> None:
    try:
        cut(fd, path, end)
    except OSError as error:
        status = os.fstat(fd)
        with _unsure_lock:
            _unsure[status.st_dev, status.st_ino] = (end, status.st_size, status.st_mtime_ns)
        log.error("a failed write to %s could not be taken back (%s); it will be before the next one", path.name,
                  error.strerror)
