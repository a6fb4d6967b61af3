"""Reading `data/api_keys.json`: a regular file of our own user, closed to all others, noticed when it changes."""

from __future__ import annotations

import logging
import os
import stat
import time
from pathlib import Path

from services.errors import ConfigError
from services.store import disk

log = logging.getLogger("parley.auth")
Signature = tuple[int, ...]         # equal as long as the file is the same; () when there is none
RACY_NS = 100_000_000               # a file changed so shortly ago may change again without another time stamp


def signature(path: Path) -> Signature:
    """What the file is now, at the price of one stat. Of a file that cannot even be looked at: the errno."""
    try:
        return _signature(os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return ()
    except OSError as error:
        return (error.errno or -1,)


def read(path: Path) -> tuple[bytes, Signature | None]:
    """The content and the signature it had; None for a signature that is too young to be trusted.

    A mode wider than 0600 is tightened, with a warning. FileNotFoundError when there is no file, ConfigError when
    it is another user's, a link, no regular file, or unreadable.
    """
    try:
        fd = disk.open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be opened: {error.strerror}; it must be a regular file that this user "
                          "can read, and no link") from None
    try:
        _check_owner_and_mode(fd, path)
        status = os.fstat(fd)
        young = abs(time.time_ns() - status.st_mtime_ns) < RACY_NS
        return disk.read_fd(fd, path), None if young else _signature(status)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)


def _check_owner_and_mode(fd: int, path: Path) -> None:
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        raise ConfigError(f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()} that this server runs "
                          "as: whoever owns it can add keys; check its content and chown it")
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~0o600:
        log.warning("%s had mode %04o, so others could use it; it is 0600 now", path, mode)
        os.fchmod(fd, 0o600)


def _signature(status: os.stat_result) -> Signature:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
