"""The computed state of sessions that hold no slot: in memory, then on disk, found again by its tokens.

The loop asks and puts; a writer thread of its own sees to the disk, so that no `put` waits for it. One lock guards the
index, held for no I/O but renaming, removing and listing. What is on the disk is not believed until it is read. Only
sessions and heads go there: of what else is asked, much would be written for nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from services import kv_names
from services.runner.kvdisk import KvDisk, length_of, log
from services.runner.kvfile import Header
from services.runner.kvindex import SHARED, Index, Match, Snapshot, pack
from services.wire import RunnerLimits

SETTLE = 2.0                # seconds without use after which what is in memory is written to the disk, too
BACKLOG = 256 << 20         # bytes that left the memory tier and wait for the disk; beyond them they are lost


class Snapshots:
    """`fingerprint`: of the model and all that a state depends on. `rewindable`: a part of a state can be used."""

    def __init__(self, limits: RunnerLimits, fingerprint: str, rewindable: bool,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._fingerprint, self._clock = fingerprint, clock
        self._limit = limits.kv_memory_bytes
        self._index = Index(rewindable)
        self._memory: dict[Snapshot, None] = {}         # the memory tier, least recently used first
        self._memory_bytes = 0
        self._unsaved: dict[Snapshot, None] = {}        # in the memory tier, to be written once they settle
        self._lock = threading.Condition()
        self._writes: dict[Snapshot, None] = {}         # to be written now
        self._sweeps: list[str] = []                    # beginnings of file names to be removed for all models
        self._busy: Snapshot | str | None = None        # what the writer has in hand
        self._closed = False
        self._root = Path(limits.kv_folder)
        self._disk: KvDisk | None = None
        if limits.kv_folder:
            self._open(bytes.fromhex(limits.kv_key), limits.kv_disk_bytes)

    def _open(self, key: bytes, limit: int) -> None:
        disk = KvDisk(self._root, self._fingerprint, key, limit, self._clock)
        disk.open()                                     # with a limit of 0, too: then nothing may stay
        if limit:
            self._disk = disk
            self._look()
            threading.Thread(target=self._run, name="snapshots", daemon=True).start()

    # ------------------------------------------------------------ for the loop

    def put(self, owner: str, session: str, tokens: Sequence[int], state: bytes, head: int = 0) -> None:
        """Keep a state, in place of older ones that it makes useless: of the same named session all, else those that
        hold a part of its tokens."""
        assert tokens
        packed = pack(tokens)
        with self._lock:
            length = length_of(owner, session, packed, state)
            if len(state) > self._limit and not (self._disk and self._disk.takes(length)):
                return
            snapshot = self._index.enter(owner, session, packed, head)
            for old in self._index.outdated(snapshot):
                if snapshot.file:
                    self._drop(old)
                else:
                    self._demote(old)
            self._keep(snapshot, state)
            self._shrink()

    def find(self, owner: str, prompt: Sequence[int], better_than: int) -> Match | None:
        """The snapshot of this owner, or of nobody's, that holds most of the prompt's beginning, and more than
        `better_than` tokens of it. The prompt's last token always stays to decode."""
        with self._lock:
            self._look()
            return self._index.longest(owner, pack(prompt[:-1]), better_than)

    def read(self, match: Match) -> bytes | None:
        """Its state, exactly as it was put; None when that is not to be had any more. Waits for the disk."""
        snapshot = match.snapshot
        with self._lock:
            if snapshot.state is not None:
                self._touch(snapshot)
                return snapshot.state
            if snapshot.gone or self._disk is None:
                return None
            state = self._disk.read(snapshot.file, self._header(snapshot))
            if state is None:
                self._drop(snapshot)
            elif snapshot.owner == SHARED and len(state) <= self._limit:
                self._keep(snapshot, state)             # it will be read again; a session's comes back with more
                self._shrink()
            return state

    def forget(self, owner: str, session: str) -> None:
        """Nothing of the session stays: not in memory, not on disk, not in what is being written."""
        with self._lock:
            for snapshot in self._index.of_session(owner, session):
                self._drop(snapshot)
            if self._disk:
                self._sweeps.append(kv_names.stem(owner, session))      # other models', and what others wrote
                self._lock.notify_all()

    def settle(self) -> float | None:
        """Begin to write what was not used for a while. Seconds until there is more to write, None: nothing is."""
        with self._lock:
            if self._disk is None or not self._disk.working:
                return None
            now = self._clock()
            for snapshot in [each for each in self._unsaved if now - each.used >= SETTLE]:
                self._hand(snapshot)
            return min((each.used + SETTLE - now for each in self._unsaved), default=None)

    def flush(self, deadline_seconds: float) -> None:
        """Write what is only in memory, most recently used first, for at most so many seconds. Any thread may."""
        with self._lock:
            if self._disk is None:
                return
            total = 0
            for snapshot in [each for each in reversed(self._memory) if _lasts(each)]:
                total += _length(snapshot)
                if not self._disk.takes(total):
                    break                               # more would only push out what was written just now
                if not snapshot.file:
                    self._hand(snapshot)
            if not self._lock.wait_for(self._idle, deadline_seconds):
                log.warning("%d snapshots were not written in time", len(self._writes) + bool(self._busy))

    def stats(self) -> dict[str, int]:
        """The fields of `wire.Stats` that are about snapshots; the disk's are of this model."""
        return {"snapshots": len(self._index), "snapshot_memory_bytes": self._memory_bytes,
                "snapshot_disk_bytes": self._index.disk_bytes}

    def close(self) -> None:
        """End the writer after what it has in hand."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    # ------------------------------------------------------------ the index; all under the lock

    def _keep(self, snapshot: Snapshot, state: bytes) -> None:
        self._take_out(snapshot)
        snapshot.state, snapshot.used = state, self._clock()
        if len(state) > self._limit:
            self._leave(snapshot)
            return
        self._memory[snapshot] = None
        self._memory_bytes += len(state)
        waits = snapshot in self._writes or snapshot is self._busy
        if self._disk and _lasts(snapshot) and not snapshot.file and not waits:
            self._unsaved[snapshot] = None

    def _touch(self, snapshot: Snapshot) -> None:
        snapshot.used = self._clock()
        if snapshot in self._memory:
            self._memory[snapshot] = self._memory.pop(snapshot)

    def _take_out(self, snapshot: Snapshot) -> None:
        """Out of the memory tier, if it is there."""
        if snapshot in self._memory:
            assert snapshot.state is not None
            del self._memory[snapshot]
            self._memory_bytes -= len(snapshot.state)
        self._unsaved.pop(snapshot, None)

    def _shrink(self) -> None:
        while self._memory_bytes > self._limit:
            oldest = next(iter(self._memory))
            self._take_out(oldest)
            self._leave(oldest)

    def _leave(self, snapshot: Snapshot) -> None:
        """It is not in the memory tier any more: let its state go once the disk has it."""
        assert snapshot.state is not None
        if snapshot.file:
            snapshot.state = None
            return
        waiting = sum(len(each.state) for each in self._writes if each.state is not None and each not in self._memory)
        if waiting and waiting + len(snapshot.state) > BACKLOG:
            self._drop(snapshot)
        else:
            self._hand(snapshot)

    def _hand(self, snapshot: Snapshot) -> None:
        """To the writer; one that the disk does not take, or of no session, is dropped unless memory holds it."""
        assert snapshot.state is not None
        self._unsaved.pop(snapshot, None)
        if _lasts(snapshot) and self._disk and self._disk.takes(_length(snapshot)):
            if snapshot is not self._busy:
                self._writes[snapshot] = None
                self._lock.notify_all()
        elif snapshot not in self._memory:
            self._drop(snapshot)

    def _demote(self, old: Snapshot) -> None:
        """A newer one is there: what is on disk stays until that one is written, the rest goes."""
        if not old.file:
            self._drop(old)
        elif old.state is not None:
            self._take_out(old)
            old.state = None

    def _drop(self, snapshot: Snapshot) -> None:
        """It is gone, its file with it."""
        if snapshot.gone:
            return
        self._take_out(snapshot)
        self._writes.pop(snapshot, None)
        snapshot.gone, snapshot.state = True, None
        if snapshot.file and self._disk:
            self._disk.remove(snapshot.file, snapshot.length)
            self._index.unfile(snapshot)
        self._index.strike(snapshot)

    def _lost(self, names: set[str]) -> None:
        """Files that are not there any more."""
        for snapshot in self._index.filed(names):
            self._index.unfile(snapshot)
            if snapshot.state is None:
                self._drop(snapshot)

    def _look(self) -> None:
        """Take note of files that came or went: other runners of the same model use the folder, too."""
        if self._disk is None:
            return
        came, went = self._disk.changes()
        self._lost(went)
        for name, header, length in came:
            snapshot = self._index.enter(header.owner, header.session, header.tokens, header.head)
            self._unsaved.pop(snapshot, None)
            self._index.file(snapshot, name, length)

    def _header(self, snapshot: Snapshot) -> Header:
        return Header(fingerprint=self._fingerprint, owner=snapshot.owner, session=snapshot.session,
                      tokens=snapshot.tokens, head=snapshot.head)

    # ------------------------------------------------------------ the writer's thread

    def _idle(self) -> bool:
        return not self._writes and not self._sweeps and self._busy is None

    def _run(self) -> None:
        while self._next():
            try:
                if isinstance(self._busy, Snapshot):
                    self._write(self._busy)
                elif self._busy is not None:
                    self._sweep(self._busy)
            except Exception:           # no memory, for one: the next may be luckier
                log.exception("a snapshot was not written")
            with self._lock:
                self._busy = None
                self._lock.notify_all()

    def _next(self) -> bool:
        """Take the next thing in hand; False at the end."""
        with self._lock:
            self._lock.wait_for(lambda: self._writes or self._sweeps or self._closed)
            if self._closed:
                return False
            if self._sweeps:
                self._busy = self._sweeps.pop(0)
            else:
                self._busy = next(iter(self._writes))
                del self._writes[self._busy]
            return True

    def _sweep(self, beginning: str) -> None:
        try:
            kv_names.remove(self._root, beginning)
        except OSError as error:
            log.warning("snapshots of a session that is gone cannot be removed: %s", error.strerror)

    def _write(self, snapshot: Snapshot) -> None:
        """Without the lock, but for the moment in which the file gets its name: what is forgotten never gets one."""
        with self._lock:
            header, state = self._header(snapshot), snapshot.state
        if state is None or self._disk is None:
            return
        went = self._disk.make_room(length_of(header.owner, header.session, header.tokens, state))
        written = self._disk.write(header, state)
        with self._lock:
            self._lost(went)
            if written and snapshot.gone:
                self._disk.drop(written[0])
            elif written:
                name = self._disk.publish(written[0], header, written[1])
                if name and not snapshot.file:
                    self._index.file(snapshot, name, written[1])
            self._written(snapshot)

    def _written(self, snapshot: Snapshot) -> None:
        if snapshot.gone:
            return
        if not snapshot.file:
            if snapshot in self._memory:
                self._unsaved[snapshot] = None          # once more when the disk works again
            else:
                self._drop(snapshot)
            return
        if snapshot not in self._memory:
            snapshot.state = None
        for old in self._index.outdated(snapshot):
            self._drop(old)



def _length(snapshot: Snapshot) -> int:
    """Of the file that it becomes."""
    assert snapshot.state is not None
    return length_of(snapshot.owner, snapshot.session, snapshot.tokens, snapshot.state)


def _lasts(snapshot: Snapshot) -> bool:
    """Whether it is worth a file: a conversation that goes on, or a profile's head."""
    return bool(snapshot.session) or snapshot.owner == SHARED
