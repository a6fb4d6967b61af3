"""What a list of sessions shows, without reading again what did not change.

What was found is remembered by each file's inode, size and time, in memory and, for owners with many sessions, in an
index file beside them, so that a restart need not read them all. That file is only a help: it is checked, boxed when
there is a cipher, and made anew when it is missing or wrong.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from services.errors import NotFound, ParleyError
from services.store import disk
from services.store.base import Entry, Record, describe
from services.store.crypto import Cipher

SUFFIX = ".jsonl"
INDEX = ".index.2"      # another number when what is in it changes
OLD = (".index.1",)     # what earlier versions wrote, removed where a new one is written
WORTH = 200             # newly read files that make it worth to write the index
UNREADABLE = ("session_damaged", "newer_schema", "bad_name")    # errors of one session that a list goes on after

Read = Callable[[str, str], Sequence[Record]]
_Stamp = tuple[int, int, int]               # inode, size, mtime_ns
_Known = tuple[_Stamp, Entry | None]        # None: made, but never used; lists leave it out
_decoder = msgspec.json.Decoder(dict[str, _Known])


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _entry(owner: str, sid: str, mode: int, read: Read) -> Entry | None:
    if not stat.S_ISREG(mode):
        return Entry("(unreadable)", problem="it is not a regular file")
    try:
        return describe(read(owner, sid))
    except NotFound:
        return None
    except ParleyError as error:
        if error.code not in UNREADABLE:
            raise
        return Entry("(damaged)", problem=error.message)


def remove(folder: Path, names: Sequence[str]) -> None:
    """Removes those of the index files `names` that are there."""
    for name in names:
        if os.path.lexists(folder / name):
            with suppress(FileNotFoundError):       # another process was first
                disk.unlink_durable(folder / name)


class Listing:
    """Remembers for each owner's folder what its files hold. Safe to share between threads."""

    def __init__(self, cipher: Cipher | None) -> None:
        self._cipher = cipher
        self._known: dict[str, dict[str, _Known]] = {}
        self._loaded: set[str] = set()      # owners whose index file was looked at
        self._lock = threading.Lock()

    def of(self, owner: str, folder: Path, read: Read) -> dict[str, Entry]:
        """The sessions of `owner`; `read` reads one that is new or has changed."""
        with disk.told(folder), os.scandir(folder) as entries:
            found = [(entry.name[:-len(SUFFIX)], entry.stat(follow_symlinks=False)) for entry in entries
                     if entry.name.endswith(SUFFIX) and not entry.name.startswith(".")]
        before = self._before(owner, folder)
        now: dict[str, _Known] = {}
        fresh = 0
        for sid, status in found:
            known = before.get(sid)
            if known is None or known[0] != _stamp(status):
                known = _stamp(status), _entry(owner, sid, status.st_mode, read)
                fresh += 1
            now[sid] = known
        with self._lock:
            self._known[owner] = now
        if fresh >= WORTH:
            with suppress(ParleyError):     # a full or read-only disk: the next start reads the files again
                disk.write_atomic(folder / INDEX, self._packed(owner, now))
                remove(folder, OLD)
        return {sid: entry for sid, (_, entry) in now.items() if entry is not None}

    def put(self, owner: str, sid: str, fd: int, records: Sequence[Record]) -> None:
        """What the writer of `fd`, who still holds it, knows of it anyway."""
        known = _stamp(os.fstat(fd)), describe(records)
        with self._lock:
            self._known.setdefault(owner, {})[sid] = known

    def forget(self, owner: str, sid: str) -> None:
        """A session is gone: memory must not grow with those that ever were."""
        with self._lock:
            self._known.get(owner, {}).pop(sid, None)

    def _before(self, owner: str, folder: Path) -> dict[str, _Known]:
        with self._lock:
            known, loaded = dict(self._known.get(owner, {})), owner in self._loaded
            self._loaded.add(owner)
        return known if loaded else {**self._unpacked(owner, folder / INDEX), **known}

    def _packed(self, owner: str, known: dict[str, _Known]) -> bytes:
        data = msgspec.json.encode({sid: (stamp, entry) for sid, (stamp, entry) in known.items()
                                    if entry is None or entry.problem is None})     # problems may be mended
        data = data if self._cipher is None else self._cipher.seal(owner, f"{owner}/{INDEX}", data).encode()
        return hashlib.sha256(data).hexdigest().encode() + b"\n" + data

    def _unpacked(self, owner: str, path: Path) -> dict[str, _Known]:
        """What an index file holds; nothing for one that is missing, changed or of another program version."""
        with suppress(OSError, ParleyError, ValueError):
            checksum, _, data = disk.read_bytes(path).partition(b"\n")
            if checksum == hashlib.sha256(data).hexdigest().encode():
                data = data if self._cipher is None else self._cipher.unseal(owner, f"{owner}/{INDEX}", data.decode())
                return _decoder.decode(data)
        return {}
