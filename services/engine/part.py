"""`<name>.gguf.part`: a model on its way into the folder, owned by one process at a time, resumed by the next."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from services import paths
from services.engine import gguf
from services.errors import BadRequest, Conflict, StorageFull

SOURCE = b"user.parley.source"      # extended attribute: which version of the file the bytes belong to
CHUNK = 1 << 20
FULL = {28, 122, 27}                # ENOSPC, EDQUOT, EFBIG


class Part:
    """The open, locked part file of the model `name`. A context: leaving it gives the lock back and keeps the bytes.

    The lock lies on the file itself. `_open` looks whether the locked file still is the one at the path, since
    another process may have published or removed it between opening and locking.
    """

    def __init__(self, models_dir: Path, name: str) -> None:
        if not name.endswith(".gguf"):
            raise BadRequest(f"{name[:80]!r} is no model file: expected a name that ends in .gguf", param="file")
        self.name = name
        self.final = paths.inside(models_dir, name, what="file")
        self.path = paths.inside(models_dir, name + ".part", what="file")
        self.fd = self._open()
        self.size = os.fstat(self.fd).st_size

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        while True:
            fd = os.open(self.path, flags, 0o644)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise BadRequest(f"{self.path.name} is not a regular file: remove it")
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.path.exists() and os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    return fd
            except BlockingIOError:
                os.close(fd)
                raise Conflict(f"{self.name} is being downloaded by another process: wait for it, or stop it") from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    @property
    def source(self) -> str | None:
        """The ETag or sha256 of what the bytes are from; None where that was not or cannot be kept."""
        try:
            return os.getxattr(self.fd, SOURCE).decode()
        except (OSError, AttributeError, UnicodeDecodeError):
            return None

    def clear(self, source: str | None = None) -> None:
        """Begin again, with bytes from `source`."""
        os.ftruncate(self.fd, 0)
        self.size = 0
        try:
            os.setxattr(self.fd, SOURCE, (source or "").encode()[:1024])
        except (OSError, AttributeError):
            return      # a file system without attributes: the next process begins again unless a sha256 is known

    def append(self, data: bytes) -> None:
        """`StorageFull` when the disk is: what is there stays."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self.fd, view, self.size)
                self.size += written
                view = view[written:]
        except OSError as error:
            if error.errno in FULL:
                raise StorageFull(f"the disk is full after {self.size:,} bytes of {self.name}: make room and run the "
                                  "same command again; it goes on from there") from None
            raise

    def start(self, length: int = 512) -> bytes:
        return os.pread(self.fd, length, 0)

    def sha256(self) -> str:
        return sha256_of(lambda at: os.pread(self.fd, CHUNK, at))

    def check(self) -> None:
        """`BadModel`, and the bytes are gone, when what came is no model."""
        os.fsync(self.fd)
        try:
            gguf.inspect(self.path, alone=True)
        except gguf.BadModel:
            self.clear()
            raise

    def publish(self) -> Path:
        """Give the model its name, in one step and for good. The caller has checked it."""
        if os.path.lexists(self.final):
            raise Conflict(f"{self.name} has appeared in {self.final.parent.name}/ meanwhile: it was left as it is")
        os.fsync(self.fd)
        os.rename(self.path, self.final)
        folder = os.open(self.final.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return self.final

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.size == 0 and self.path.exists() and os.path.samestat(os.fstat(self.fd), os.stat(self.path)):
            os.unlink(self.path)
        os.close(self.fd)


def sha256_of(read: Callable[[int], bytes]) -> str:
    """Of everything that `read(offset)` gives until it gives nothing; in hexadecimal."""
    digest, at = hashlib.sha256(), 0
    while block := read(at):
        digest.update(block)
        at += len(block)
    return digest.hexdigest()
