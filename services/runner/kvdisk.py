"""The folder in which a model's snapshots lie, and the room that all models' snapshots share.

Several runners may use the folder at once (replicas, a switch), so a file may come or go at any time. What fails is
told once and then left alone for a while: snapshots are a cache, and nobody's request depends on them.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from services import kv_names
from services.runner import kvfile
from services.runner.kvfile import Damaged, Header

log = logging.getLogger("parley.runner")
PAUSE = 60.0                # seconds without writing after a failure
RECOUNT = 60.0              # seconds after which what others wrote is counted again
RACY = 200_000_000          # nanoseconds in which a folder may change twice and keep its time of change
STALE = 3600.0              # seconds after which a temporary file is nobody's, whatever lives under its number
TELL = 5                    # damaged files that are told one by one; many at once are a changed DATA_KEY
MIB = 1 << 20
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def model_fingerprint(path: str, *parts: object) -> str:
    """32 hex digits for a model file (all files of a split one) and whatever else its states depend on. OSError.

    A file is known by its size, its time of change, and its first and last MiB.
    """
    digest = blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16, person=b"parley kv model")
    for each in _files(path):
        with open(each, "rb") as stream:
            status = os.fstat(stream.fileno())
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode() + stream.read(MIB))
            stream.seek(max(0, status.st_size - MIB))
            digest.update(stream.read(MIB))
    return digest.hexdigest()


def _files(path: str) -> list[str]:
    split = _PART.search(path)
    if not split:
        return [path]
    count = int(split[1])
    return [f"{path[:split.start()]}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def length_of(owner: str, session: str, tokens: bytes, state: bytes) -> int:
    """About how long the file of a snapshot is, never less."""
    names = len(f"{owner}{session}".encode("utf-8", "surrogatepass"))
    return len(state) + len(tokens) + names + kvfile.TAG * (len(state) // kvfile.CHUNK) + 256


class KvDisk:
    """`root`: the folder of all models; `key`: 32 bytes, b"" writes in the clear; `limit`: bytes, of all models.

    `open` first. `write` and `make_room` are for one thread; the rest is for whoever holds its owner's lock.
    """

    def __init__(self, root: Path, fingerprint: str, key: bytes, limit: int,
                 clock: Callable[[], float] = time.monotonic) -> None:
        assert fingerprint.isalnum()
        self.folder = root / fingerprint
        self._root, self._fingerprint, self._key, self._limit, self._clock = root, fingerprint, key, limit, clock
        self._known: set[str] = set()           # names in the folder that were looked at
        self._stamp = 0                         # the folder's time of change when it was last listed
        self._resume = float("-inf")            # no writing before
        self._total = 0                         # bytes of all models, as far as known: counted again now and then
        self._oldest: deque[tuple[int, str, int]] = deque()     # time, path and size, of the last count
        self._counted = 0.0

    @property
    def working(self) -> bool:
        return self._clock() >= self._resume

    def takes(self, length: int) -> bool:
        """Whether so many bytes could be kept at all."""
        return length <= self._limit

    # ------------------------------------------------------------ at the start

    def open(self) -> None:
        """Clean up: what dead processes left half written, what is not sealed as it should be, what is too much."""
        try:
            for entry in list(kv_names.files(self._root, ".tmp")):
                self._sweep(entry)
            self._tell([damage for entry in list(kv_names.files(self._root))
                        if (damage := self._wrong_seal(Path(entry.path)))])
        except OSError as error:
            self._pause(error)
        self.make_room(0)

    def _sweep(self, entry: os.DirEntry[str]) -> None:
        number = entry.name.split(".")[-3] if entry.name.count(".") >= 4 else ""
        with suppress(FileNotFoundError):
            if not _alive(number) or time.time() - entry.stat().st_mtime > STALE:
                os.unlink(entry.path)

    def _wrong_seal(self, path: Path) -> str | None:
        """Of any model: what is in the clear may not stay once there is a key, and the other way round."""
        try:
            sealed = kvfile.is_sealed(path)
            if sealed == bool(self._key):
                return None
            damage = kvfile.mismatch(sealed)
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"{path.name}: {error.strerror}"
        except Damaged as error:
            damage = error
        self._unlink(path)
        return f"{path.name}: {damage}"

    def _tell(self, damages: list[str]) -> None:
        for damage in damages[:TELL]:
            log.warning("a snapshot is ignored and removed: %s", damage)
        if len(damages) > TELL:
            log.warning("%d more snapshots are ignored and removed", len(damages) - TELL)

    # ------------------------------------------------------------ what is there

    def changes(self) -> tuple[list[tuple[str, Header, int]], set[str]]:
        """What came since the last call (name, header, length) and which names went. Damaged ones are removed."""
        try:
            stamp = os.stat(self.folder).st_mtime_ns
            if stamp == self._stamp:
                return [], set()
            with os.scandir(self.folder) as listing:
                names = {entry.name for entry in listing if entry.name.endswith(kv_names.SUFFIX)}
        except FileNotFoundError:
            names, stamp = set(), 0
        except OSError as error:
            self._pause(error)
            return [], set()
        came, went = names - self._known, self._known - names
        self._known = names
        self._stamp = stamp if time.time_ns() - stamp > RACY else 0
        damages: list[str] = []
        found = [each for name in sorted(came) if (each := self._look(name, damages))]
        self._tell(damages)
        return found, went

    def _look(self, name: str, damages: list[str]) -> tuple[str, Header, int] | None:
        path = self.folder / name
        try:
            header = kvfile.read_header(path, self._key)
            self._verify(name, header)
            return name, header, os.stat(path).st_size
        except FileNotFoundError:
            return None
        except Damaged as damage:
            self._unlink(path)
            damages.append(f"{name}: {damage}")
        except OSError as error:
            damages.append(f"{name}: {error.strerror}")
        return None

    def _verify(self, name: str, header: Header) -> None:
        if header.fingerprint != self._fingerprint:
            raise Damaged("it is of another model")
        if name != self.name_of(header):
            raise Damaged("it is not what its name says")

    def name_of(self, header: Header) -> str:
        """The tokens' mark needs the key where there is one: else it would confirm a guess of the text."""
        mark = blake2b(header.tokens, key=self._key, digest_size=8).hexdigest()
        return f"{kv_names.stem(header.owner, header.session)}-{mark}{kv_names.SUFFIX}"

    def read(self, name: str, header: Header) -> bytes | None:
        """The state of a file that still is what `header` says, which counts as a use; else None and a line in the
        log: the caller removes it."""
        path = self.folder / name
        try:
            found, state = kvfile.read(path, self._key)
            self._verify(name, found)
            if (found.owner, found.session, found.tokens) != (header.owner, header.session, header.tokens):
                raise Damaged("it is of another session")
        except FileNotFoundError:
            log.info("the snapshot %s is gone", name)
            return None
        except (Damaged, OSError) as error:
            self._tell([f"{name}: {error}"])
            return None
        with suppress(OSError):
            os.utime(path)                      # only the order of removal depends on it
        return state

    def remove(self, name: str, length: int) -> None:
        """One that cannot be removed is never looked at again."""
        if self._unlink(self.folder / name):
            self._known.discard(name)
            self._total -= length

    def _unlink(self, path: Path) -> bool:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the snapshot %s cannot be removed: %s", path.name, error.strerror)
            return False
        return True

    # ------------------------------------------------------------ writing

    def write(self, header: Header, state: bytes) -> tuple[Path, int] | None:
        """A temporary file with the snapshot and its length; None when the disk does not take it."""
        temporary = self.folder / f".{self.name_of(header)}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        if not self.working:
            return None
        try:
            for folder in (self._root, self.folder):
                folder.mkdir(mode=0o700, exist_ok=True)
            return temporary, kvfile.write(temporary, header, state, self._key)
        except OSError as error:
            self._pause(error)
            self.drop(temporary)
            return None

    def publish(self, temporary: Path, header: Header, size: int) -> str:
        """Give a written file its name, "" when that fails."""
        name = self.name_of(header)
        try:
            os.replace(temporary, self.folder / name)
        except OSError as error:
            self._pause(error)
            self.drop(temporary)
            return ""
        self._known.add(name)
        self._total += size
        return name

    def drop(self, temporary: Path) -> None:
        with suppress(OSError):                 # it may not be there; a sweep finds it otherwise
            os.unlink(temporary)

    def _pause(self, error: OSError) -> None:
        if self.working:
            log.warning("%s does not work (%s): no snapshots are written there for %g s", self._root,
                        error.strerror, PAUSE)
        self._resume = self._clock() + PAUSE

    # ------------------------------------------------------------ room

    def make_room(self, size: int) -> set[str]:
        """Remove what was not used for longest, of any model, until `size` bytes fit; what went from this folder."""
        went: set[str] = set()
        try:
            self._make_room(size, went)
        except OSError as error:
            self._pause(error)
        return went

    def _make_room(self, size: int, went: set[str]) -> None:
        fresh = not self._counted or self._clock() - self._counted > RECOUNT
        if fresh:
            self._count()
        while self._total + size > self._limit:
            if not self._oldest and not fresh:
                self._count()
                fresh = True
                continue
            if not self._oldest:
                break
            when, path, length = self._oldest.popleft()
            if self._expire(path, when):
                self._total -= length
                if os.path.dirname(path) == str(self.folder):
                    went.add(os.path.basename(path))

    def _count(self) -> None:
        found = []
        for entry in kv_names.files(self._root):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                found.append((status.st_mtime_ns, entry.path, status.st_size))
        self._oldest = deque(sorted(found))
        self._total = sum(size for _, _, size in found)
        self._counted = self._clock()

    def _expire(self, path: str, when: int) -> bool:
        """Remove a file unless it was used since it was counted, or is gone already. True when it was removed."""
        try:
            if os.stat(path).st_mtime_ns != when:
                return False
            os.unlink(path)
        except FileNotFoundError:
            return False
        with suppress(OSError):                 # an empty folder is of a model that nobody uses; others stay
            if os.path.dirname(path) != str(self.folder):
                os.rmdir(os.path.dirname(path))
        return True


def _alive(number: str) -> bool:
    """Whether a temporary file's process may still write it: one before this, with this one's number, does not."""
    if not (number.isascii() and number.isdigit()) or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
