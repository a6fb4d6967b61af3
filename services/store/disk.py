"""The one door through which the data folder is written: atomic files, durable appends, locks, and test failures.

Every system call that may fail passes `_tell` first, so a test can make the Nth one fail, cut a write short, or record
the trace of a power cut. Nothing here follows a symbolic link, and a failed fsync is never tried again in the hope that
it lies less the second time: what it covered is cut off and written anew by whoever asks next.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from weakref import WeakValueDictionary

from services.errors import ConfigError, ParleyError, StorageFull, Unavailable

log = logging.getLogger("parley.store")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


# ---------------------------------------------------------------- what tests hook into

@dataclass(frozen=True)
class Op:
    """One call to the disk, told before it is made."""

    kind: str           # open | read | write | fsync | truncate | replace | fsync_dir | unlink | mkdir | lock
    path: str
    data: bytes = b""   # write: what
    at: int = 0         # write: the offset
    size: int = 0       # truncate: the new length
    target: str = ""    # replace: the new name


# Tests only: may raise OSError, or return how many bytes a write may write at most.
watcher: Callable[[Op], int | None] | None = None
_passes: Counter[str] = Counter()


def _tell(kind: str, path: Path, **more: int | bytes | str) -> int | None:
    return None if watcher is None else watcher(Op(kind, str(path), **more))  # type: ignore[arg-type]


def armed(name: str) -> str | None:
    """What the environment's `FAILPOINT="name:kill|raise|sleep=<s>[@<nth pass>],…"` wants at `name`, if anything."""
    text = os.environ.get("FAILPOINT")
    if not text:
        return None
    for entry in text.split(","):
        point, _, action = entry.strip().partition(":")
        if point == name:
            return action
    return None


def failpoint(name: str) -> None:
    """A place where tests kill, fail or slow this process. Nothing unless `FAILPOINT` names it."""
    wanted = armed(name)
    if wanted is None:
        return
    action, _, nth = wanted.partition("@")
    _passes[name] += 1
    if nth and _passes[name] != int(nth):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "raise":
        raise OSError(errno.EIO, f"failpoint {name}")
    elif action.startswith("sleep="):
        time.sleep(float(action[6:]))
    else:
        raise ConfigError(f"FAILPOINT={name}:{wanted}: expected kill, raise or sleep=<seconds>")


# ---------------------------------------------------------------- errors

def storage_error(error: OSError, path: Path) -> ParleyError:
    """`error` as what a client is told: 507 for a full disk or quota, else 503."""
    why = f"{path.name}: {error.strerror or error}"
    if error.errno in FULL:
        return StorageFull(f"the data folder cannot take more ({why}); free some space, nothing that was saved is lost")
    if error.errno in READ_ONLY:
        return Unavailable(f"the data folder cannot be written ({why}); check its owner, mode and mount",
                           code="store_readonly")
    if error.errno == errno.ELOOP:
        why = f"{path.name} is a symbolic link, which is not followed inside the data folder"
    return Unavailable(f"the data folder does not work ({why})", code="store_failed")


@contextmanager
def told(path: Path, absent: bool = False) -> Iterator[None]:
    """Turns an OSError of the block into the ParleyError for clients; with `absent`, FileNotFoundError stays itself."""
    try:
        yield
    except FileNotFoundError as error:
        if absent:
            raise
        raise storage_error(error, path) from error
    except OSError as error:
        raise storage_error(error, path) from error


# ---------------------------------------------------------------- single calls

def open_file(path: Path, flags: int, mode: int = 0o600) -> int:
    """A descriptor of a regular file, never through a link, never hanging on a FIFO. Raises OSError."""
    _tell("open", path)
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file")


def read_fd(fd: int, path: Path, size: int | None = None) -> bytes:
    """The first `size` bytes (all when None). Raises OSError."""
    _tell("read", path)
    left = os.fstat(fd).st_size if size is None else size
    parts, at = [], 0
    while left > 0 and (part := os.pread(fd, min(left, 1 << 24), at)):
        parts.append(part)
        at += len(part)
        left -= len(part)
    return b"".join(parts)


def write_all(fd: int, path: Path, data: bytes, at: int) -> None:
    while data:
        most = _tell("write", path, data=data, at=at)
        done = os.write(fd, data if most is None else data[:most])
        if done <= 0:
            raise OSError(errno.EIO, "nothing was written")
        data, at = data[done:], at + done


def fsync(fd: int, path: Path) -> None:
    failpoint("before_fsync")
    _tell("fsync", path)
    os.fsync(fd)
    failpoint("after_fsync")


def fsync_dir(path: Path) -> None:
    """Makes creations, renames and removals in the folder `path` durable. Raises OSError."""
    _tell("fsync_dir", path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def truncate(fd: int, path: Path, size: int) -> None:
    _tell("truncate", path, size=size)
    os.ftruncate(fd, size)


# ---------------------------------------------------------------- whole files and folders

def read_bytes(path: Path) -> bytes:
    """The content of a regular file. FileNotFoundError when there is none; other failures as ParleyErrors."""
    with told(path, absent=True):
        fd = open_file(path, os.O_RDONLY)
        try:
            return read_fd(fd, path)
        finally:
            os.close(fd)


def write_atomic(path: Path, data: bytes, mode: int = 0o600, sync_folder: bool = True) -> None:
    """`path` holds `data` durably when this returns, else what it held before or (a failed last step) all of `data`.

    Raises StorageFull or Unavailable. The folder must exist. A link at `path` is refused.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with told(path):
        if path.is_symlink():
            raise OSError(errno.ELOOP, "symbolic link")
        try:
            failpoint("before_tmp")
            _write_new(temporary, data, mode)
            failpoint("before_rename")
            _tell("replace", temporary, target=str(path))
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        failpoint("after_rename")
        if sync_folder:
            fsync_dir(path.parent)


def write_many(files: Mapping[Path, bytes]) -> None:
    """Like `write_atomic` for each, all durable on return. Many threads wait for the disk at once, which it likes."""
    if len(files) == 1:
        write_atomic(*next(iter(files.items())))
        return
    with ThreadPoolExecutor(16) as pool:
        done = [pool.submit(write_atomic, path, data, sync_folder=False) for path, data in files.items()]
    for each in done:
        each.result()
    for folder in {path.parent for path in files}:
        with told(folder):
            fsync_dir(folder)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.fchmod(fd, mode)
        failpoint("after_tmp")
        write_all(fd, path, data, 0)
        fsync(fd, path)
    finally:
        os.close(fd)


def rename_durable(path: Path, target: Path) -> None:
    """Renames within one folder, replacing `target`. Raises ParleyErrors."""
    with told(path):
        _tell("replace", path, target=str(target))
        os.replace(path, target)
        fsync_dir(target.parent)


def unlink_durable(path: Path) -> None:
    """Removes a file for good. FileNotFoundError when there is none; other failures as ParleyErrors."""
    with told(path, absent=True):
        _tell("unlink", path)
        os.unlink(path)
    with told(path):
        fsync_dir(path.parent)


def make_dirs(path: Path, mode: int = 0o700, follow: bool = True) -> Path:
    """Creates the folder `path` and its parents as needed, durably.

    The data folder itself may be a link to elsewhere; `follow=False`, for folders inside it, refuses one.
    """
    with told(path):
        if not follow and path.is_symlink():
            raise OSError(errno.ELOOP, "symbolic link")
        if not path.is_dir():
            if not path.parent.is_dir():
                make_dirs(path.parent, mode)
            _tell("mkdir", path)
            with suppress(FileExistsError):
                os.mkdir(path, mode)
            fsync_dir(path.parent)
            if not path.is_dir():
                raise OSError(errno.ENOTDIR, "not a folder")
    return path


def keep_copy(data_dir: Path, name: str, content: bytes) -> bool:
    """Puts `content` into `data_dir/quarantine/name`, for a person to look at; False when there is one already."""
    folder = make_dirs(data_dir / "quarantine", follow=False)
    if (folder / name).exists():
        return False
    write_atomic(folder / name, content)
    return True


def sweep(folder: Path) -> None:
    """Removes temporary files that dead processes left in `folder` and below. Never one of a process that lives."""
    for path in folder.rglob(".*.tmp"):
        pid = path.name.split(".")[-3] if path.name.count(".") >= 4 else ""
        if not (pid.isascii() and pid.isdigit() and _alive(int(pid))):
            with suppress(OSError):
                os.unlink(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# ---------------------------------------------------------------- locks

def lock_fd(fd: int, path: Path, wait: float) -> None:
    """Takes the exclusive lock of an open file within `wait` seconds, else TimeoutError; or a ParleyError.

    Holds across processes and threads, since each has a descriptor of its own; ends with the descriptor, so also when
    the process is killed.
    """
    deadline, pause = time.monotonic() + wait, 0.001
    with told(path):
        _tell("lock", path)
    while True:
        try:
            with told(path):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except Unavailable as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{path.name} is in use") from None
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(pause * 1.5, 0.05)


_lines: WeakValueDictionary[Path, threading.Lock] = WeakValueDictionary()
_lines_guard = threading.Lock()


@contextmanager
def locked(path: Path, wait: float = 10.0) -> Iterator[None]:
    """Holds the lock of `path` (on `<path>.lock` beside it). TimeoutError after `wait` seconds.

    The kernel tells nobody that such a lock is free, so who waits asks again and again. Of this process's threads only
    the first in line does: hundreds that ask would keep the one that holds it from its work.
    """
    beside = path.with_name(path.name + ".lock")
    deadline = time.monotonic() + wait
    with _lines_guard:
        line = _lines.setdefault(beside, threading.Lock())
    if not line.acquire(timeout=max(0.0, wait)):
        raise TimeoutError(f"{beside.name} is in use")
    try:
        fd = _take_lock(beside, deadline)
        try:
            yield
        finally:
            os.close(fd)
    finally:
        line.release()


def _take_lock(path: Path, deadline: float) -> int:
    while True:
        with told(path):
            fd = open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            lock_fd(fd, path, max(0.0, deadline - time.monotonic()))
            if same_file(fd, path):         # else its last holder removed it
                held, fd = fd, -1
                return held
        finally:
            if fd >= 0:
                os.close(fd)


def same_file(fd: int, path: Path) -> bool:
    """Whether `path` (no link followed) names what `fd` has open."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    held = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


class DataLock:
    """The hold of one server on its data folder; `close` or the end of the process lets go."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> DataLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def lock_data_folder(data_dir: Path) -> DataLock:
    """Makes this process the one server of `data_dir` (created when missing), else ConfigError naming who is.

    A read-only folder is held through a lock on the folder itself, and the log says that nothing can be saved.
    """
    path = data_dir / "parley.lock"
    try:
        if not data_dir.is_dir():
            make_dirs(data_dir)
        fd = open_file(path, os.O_RDWR | os.O_CREAT)
    except (OSError, ParleyError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in READ_ONLY or not data_dir.is_dir():
            raise ConfigError(f"the data folder {data_dir} cannot be used: {error}") from error
        log.warning("the data folder %s cannot be written: answers that should be kept will be refused", data_dir)
        return _hold(os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), data_dir)
    lock = _hold(fd, data_dir)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    sweep(data_dir)
    return lock


def _hold(fd: int, data_dir: Path) -> DataLock:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip() if regular else ""
        os.close(fd)
        raise ConfigError(f"{data_dir} is in use by {'pid ' + pid if pid else 'another server'}; stop that one first, "
                          "or give this one another DATA_DIR") from None
    return DataLock(fd)
