"""Sessions in memory: the contract without a disk, for tests and for callers that keep nothing."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.errors import Conflict
from services.store import lines
from services.store.base import Entry, Log, Record, Store, busy, check_names, deleted, describe, not_found, numbered


@dataclass
class _Session:
    records: list[Record]
    turn: threading.Lock = field(default_factory=threading.Lock)
    deleted: bool = False


class MemoryLog(Log):
    def __init__(self, sid: str, session: _Session) -> None:
        self._sid, self._session = sid, session
        self.records = copy.deepcopy(session.records)

    def gone(self) -> bool:
        return self._session.deleted

    def append(self, record: Record) -> Record:
        if self.gone():
            raise deleted(self._sid)
        record = {"n": len(self.records), **record}
        lines.encode("", self._sid, record, None)       # refuses what no file could hold
        self._session.records.append(copy.deepcopy(record))
        self.records.append(record)
        return record


class MemoryStore(Store):
    def __init__(self) -> None:
        self._sessions: dict[tuple[str, str], _Session] = {}
        self._lock = threading.Lock()

    def owners(self) -> list[str]:
        with self._lock:
            return sorted({owner for owner, _ in self._sessions})

    def index(self, owner: str) -> dict[str, Entry]:
        with self._lock:
            found = {sid: describe(session.records) for (who, sid), session in self._sessions.items() if who == owner}
        return {sid: entry for sid, entry in found.items() if entry}

    def read(self, owner: str, sid: str) -> list[Record]:
        with self._lock:
            session = self._sessions.get((owner, sid))
            if session is None or describe(session.records) is None:
                raise not_found(sid)
            return copy.deepcopy(session.records)

    @contextmanager
    def open(self, owner: str, sid: str, wait: float, head: Record | None = None) -> Iterator[Log]:
        session = self._take(owner, sid, wait, head)
        try:
            yield MemoryLog(sid, session)
        finally:
            with self._lock:
                if describe(session.records) is None:
                    session.deleted = True
                    self._sessions.pop((owner, sid), None)
            session.turn.release()

    def _take(self, owner: str, sid: str, wait: float, head: Record | None) -> _Session:
        check_names(owner, sid)
        while True:
            with self._lock:
                session = self._sessions.get((owner, sid))
                if session is None:
                    if head is None:
                        raise not_found(sid)
                    session = self._sessions[owner, sid] = _Session(numbered(owner, sid, [head]))
            if not session.turn.acquire(timeout=wait):
                raise busy(sid, wait)
            if not session.deleted:
                return session
            session.turn.release()

    def create(self, owner: str, choose: Callable[[Collection[str]], str], records: Sequence[Record]) -> str:
        with self._lock:
            sid = choose({sid for who, sid in self._sessions if who == owner})
            check_names(owner, sid)
            if (owner, sid) in self._sessions:
                raise Conflict(f"session {sid} exists", param="session_id")
            self._sessions[owner, sid] = _Session(copy.deepcopy(numbered(owner, sid, records)))
        return sid

    def delete(self, owner: str, sid: str) -> None:
        with self._lock:
            session = self._sessions.pop((owner, sid), None)
            if session is None:
                raise not_found(sid)
            session.deleted = True
