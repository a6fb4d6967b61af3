"""Sessions as files: `sessions/<owner>/<session id>.jsonl`, one line a record, appended and synced, never rewritten.

Folders have mode 0700, files 0600. A writer holds `flock` on the session's own file for as long as its turn lasts, so
threads and processes take turns, and a killed writer lets go by itself. Readers take no lock: they ignore a tail that
is not whole. A file that cannot be trusted is copied to `quarantine/` and left as it is; only its session suffers.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from services.errors import Conflict, Gone, ParleyError, Unavailable
from services.store import appending, disk, lines
from services.store.base import (
    Entry,
    Log,
    Record,
    Store,
    busy,
    check_names,
    deleted,
    describe,
    is_owner,
    not_found,
    numbered,
)
from services.store.crypto import Cipher
from services.store.listing import SUFFIX, Listing

log = logging.getLogger("parley.store")
Choose = Callable[[Collection[str]], str]
MAKING = 300.0          # seconds: where hundreds begin a session at once on a slow disk, each gets its turn


class FileLog(Log):
    """An open, locked session file. Only its holder appends, so what is behind `_good` is nobody's."""

    def __init__(self, store: FileStore, owner: str, sid: str, path: Path, fd: int) -> None:
        self._store, self._owner, self._sid, self._path, self._fd = store, owner, sid, path, fd
        with disk.told(path):
            content = disk.read_fd(fd, path, appending.good_length(fd))
        parsed = store.trusted(owner, sid, content)
        self.records, self._good, self._ended = parsed.records, parsed.good, parsed.ended
        self._tail = content[parsed.good:]

    def append(self, record: Record) -> Record:
        record = {"n": len(self.records), **record}
        line = lines.encode(self._owner, self._sid, record, self._store.cipher)
        self._check_alive()
        with disk.told(self._path):
            self._mend()
        line = line if self._ended else b"\n" + line
        appending.append_durable(self._fd, self._path, line)
        self._good += len(line)
        self._ended = True
        self.records.append(record)
        self._check_alive()
        return record

    def gone(self) -> bool:
        return not disk.same_file(self._fd, self._path)

    def _check_alive(self) -> None:
        self._store.check_folder()
        if self.gone():
            raise deleted(self._sid)

    def _mend(self) -> None:
        """Cuts off what is behind the last whole record, a torn tail only once a copy is put aside. OSError."""
        if os.fstat(self._fd).st_size == self._good:
            return
        if self._tail:
            self._store.quarantine(self._owner, self._sid, self._tail)
            self._tail = b""
        appending.cut(self._fd, self._path, self._good)

    def leave(self) -> None:
        """Removes a session that was made for a turn which then wrote nothing. Where that fails, no list shows it."""
        if self.gone():
            return
        if describe(self.records) is None:
            with suppress(ParleyError, FileNotFoundError):
                disk.unlink_durable(self._path)
        elif self._tail == b"" and os.fstat(self._fd).st_size == self._good:
            self._store.listing.put(self._owner, self._sid, self._fd, self.records)


class _Ids(Collection[str]):
    """The ids in use in an owner's folder, looked up only as far as they are asked for, and those `chosen` since."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.chosen: set[str] = set()

    def __contains__(self, sid: object) -> bool:
        return sid in self.chosen or os.path.lexists(self._folder / f"{sid}{SUFFIX}")

    def __iter__(self) -> Iterator[str]:
        with disk.told(self._folder):
            found = {name[:-len(SUFFIX)] for name in os.listdir(self._folder) if name.endswith(SUFFIX)}
        return iter(found | self.chosen)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class FileStore(Store):
    """All sessions below `data_dir/sessions`. One object serves all threads of a process."""

    def __init__(self, data_dir: Path, cipher: Cipher | None = None) -> None:
        self.data_dir = data_dir
        self.cipher = cipher
        self.folder = disk.make_dirs(data_dir / "sessions", follow=False)
        with disk.told(self.folder):    # held open, so that no other folder can get its inode number
            self._fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        self.listing = Listing(cipher)

    def owners(self) -> list[str]:
        self.check_folder()
        with disk.told(self.folder):
            return sorted(entry.name for entry in os.scandir(self.folder)
                          if entry.is_dir(follow_symlinks=False) and is_owner(entry.name))

    def index(self, owner: str) -> dict[str, Entry]:
        folder = self._owner_folder(owner)
        if folder is None:
            return {}
        return self.listing.of(owner, folder, self.read)

    def read(self, owner: str, sid: str) -> list[Record]:
        path = self._path(owner, sid)
        try:
            content = self._content(path)
            try:
                parsed = lines.parse(owner, sid, content, self.cipher)
            except lines.Damaged:       # or a writer took back a failed append between two reads: look again
                parsed = self.trusted(owner, sid, self._content(path))
            except lines.Newer as error:
                raise _newer(sid, error) from None
        except FileNotFoundError:
            raise not_found(sid) from None
        if describe(parsed.records) is None:
            raise not_found(sid)
        return parsed.records

    def _content(self, path: Path) -> bytes:
        with disk.told(path, absent=True):
            fd = disk.open_file(path, os.O_RDONLY)
            try:
                return disk.read_fd(fd, path, appending.good_length(fd))
            finally:
                os.close(fd)

    @contextmanager
    def open(self, owner: str, sid: str, wait: float, head: Record | None = None) -> Iterator[Log]:
        path = self._path(owner, sid)
        fd = self._hold(owner, sid, path, wait, head)
        try:
            session = FileLog(self, owner, sid, path, fd)
            if head is None and describe(session.records) is None:
                raise not_found(sid)
            try:
                yield session
            finally:
                session.leave()
        finally:
            os.close(fd)

    def _hold(self, owner: str, sid: str, path: Path, wait: float, head: Record | None) -> int:
        """A locked descriptor of the file that is at `path` now: not of one removed while waiting."""
        deadline = time.monotonic() + wait
        while True:
            try:
                with disk.told(path, absent=True):
                    fd = disk.open_file(path, os.O_RDWR | os.O_APPEND)
            except FileNotFoundError:
                if head is None:
                    raise not_found(sid) from None
                with suppress(Conflict):        # somebody else was first
                    self.create(owner, lambda used: sid, [head])
                continue
            try:
                disk.lock_fd(fd, path, max(0.0, deadline - time.monotonic()))
                if disk.same_file(fd, path):
                    held, fd = fd, -1
                    return held
            except TimeoutError:
                raise busy(sid, wait) from None
            finally:
                if fd >= 0:
                    os.close(fd)

    def create(self, owner: str, choose: Choose, records: Sequence[Record]) -> str:
        return self.create_many(owner, [(choose, records)])[0]

    def create_many(self, owner: str, sessions: Sequence[tuple[Choose, Sequence[Record]]]) -> list[str]:
        """`create` for each of `sessions`; when it fails, some may be there, each whole."""
        folder = self._owner_folder(owner) or disk.make_dirs(self.folder / owner, follow=False)
        files: dict[Path, bytes] = {}
        try:
            with disk.locked(folder / ".new", MAKING):
                used = _Ids(folder)
                for choose, records in sessions:
                    sid = choose(used)
                    path = self._path(owner, sid)
                    if sid in used:
                        raise Conflict(f"session {sid} exists", param="session_id")
                    files[path] = lines.encode_all(owner, sid, numbered(owner, sid, records), self.cipher)
                    used.chosen.add(sid)
                disk.write_many(files)
        except TimeoutError:
            raise Unavailable("other sessions are being made; try again", code="store_busy") from None
        return [path.name[:-len(SUFFIX)] for path in files]

    def delete(self, owner: str, sid: str) -> None:
        try:
            disk.unlink_durable(self._path(owner, sid))
        except FileNotFoundError:
            raise not_found(sid) from None
        self.listing.forget(owner, sid)

    # ------------------------------------------------------------ guards

    def check_folder(self) -> None:
        """Unavailable when `sessions/` is no longer the folder that was opened: removed, moved away or replaced."""
        if not disk.same_file(self._fd, self.folder):
            raise Unavailable("the data folder was removed or moved while the server runs; put it back, or restart the "
                              "server to begin with what is there now", code="store_failed")

    def _owner_folder(self, owner: str) -> Path | None:
        """The folder of `owner`, None when there is none; a link or file in its place is refused."""
        check_names(owner, "any")
        self.check_folder()
        folder = self.folder / owner
        try:
            mode = folder.lstat().st_mode
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(mode):
            raise Unavailable(f"sessions/{owner} is a link or a file where a folder should be", code="store_failed")
        return folder

    def _path(self, owner: str, sid: str) -> Path:
        check_names(owner, sid)
        self._owner_folder(owner)
        return self.folder / owner / (sid + SUFFIX)

    def trusted(self, owner: str, sid: str, content: bytes) -> lines.Parsed:
        """The records in `content`, else the error that tells the client, after a copy was put into quarantine."""
        try:
            return lines.parse(owner, sid, content, self.cipher)
        except lines.Newer as error:
            raise _newer(sid, error) from None
        except lines.Damaged as error:
            why = str(error)
        try:
            where = f"a copy is quarantine/{self.quarantine(owner, sid, content)}"
        except ParleyError as error:
            where = f"no copy could be made ({error.message})"
        raise Gone(f"session {sid} is damaged and left as it is: sessions/{owner}/{sid}{SUFFIX}, {why}; {where}. "
                   "Restore the file from a backup, or delete the session to use its id again", code="session_damaged",
                   param="session_id")

    def quarantine(self, owner: str, sid: str, content: bytes) -> str:
        """Puts a copy of bad bytes aside, once; its file name."""
        name = f"{owner}-{sid}-{hashlib.sha256(content).hexdigest()[:12]}{SUFFIX}"
        if disk.keep_copy(self.data_dir, name, content):
            log.warning("session %s/%s holds %d bytes that cannot be read; a copy is quarantine/%s", owner, sid,
                        len(content), name)
        return name


def _newer(sid: str, error: lines.Newer) -> Unavailable:
    return Unavailable(f"session {sid} was written by a newer Parley (schema {error}): install that one to use it",
                       code="newer_schema", param="session_id")
