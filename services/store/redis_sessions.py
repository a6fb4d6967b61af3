"""Sessions in Redis, which several gateways share. The steps are in `redis_sessions_lua`.

The lines are those of the files (`services.store.lines`), one list for each session. What is acknowledged is as durable
as Redis makes it: with `appendonly yes` and `appendfsync always` on its disk, as a file's line is.

A writer holds a lock of LEASE seconds, renewed for as long as its turn lasts. Every append says which lock it was made
under and how many lines it knows of, so whoever lost the lock, having been away for too long, adds nothing to what
another has written since.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from services.errors import ConfigError, Conflict, Gone, ParleyError, Unavailable
from services.store import lines, redis_sessions_lua
from services.store.base import (
    Entry,
    Log,
    Record,
    Store,
    busy,
    check_names,
    deleted,
    describe,
    not_found,
    numbered,
)
from services.store.crypto import Seals
from services.store.redis_link import LEASE, Leases, Link

STEPS = {name: getattr(redis_sessions_lua, name) for name in ("CREATE", "OPEN", "APPEND", "CLOSE", "DELETE")}
ROOM = "sessions"
LONGEST_PAUSE = 0.05        # seconds between two looks at a session that another holds
PATIENCE = 5.0              # seconds that a turn waits for Redis to take a line
AGAIN = 0.1                 # seconds between two tries
_NUMBER = 32                # digits of a session's number
_MILLISECONDS = round(LEASE * 1000)


class RedisLog(Log):
    """A session that this process holds."""

    def __init__(self, store: RedisStore, owner: str, sid: str, token: str, number: str,
                 records: list[Record]) -> None:
        self._store, self._owner, self._sid, self._token, self._number = store, owner, sid, token, number
        self.records = records

    def append(self, record: Record) -> Record:
        store = self._store
        record = {"n": len(self.records), **record}
        line = store.line(self._owner, self._sid, record)
        entry = store.entry(self._owner, self._sid, [*self.records, record])
        done = self._added(entry, line)
        if done == b"gone":
            raise deleted(self._sid)
        if done == b"moved":
            raise Conflict(f"session {self._sid} went on with another request, since this server was cut off from "
                           f"Redis for more than {LEASE:g} s; try again", code="session_moved", param="session_id")
        self.records.append(record)
        return record

    def _added(self, entry: str, line: bytes) -> bytes:
        """What the step APPEND says. An answer took long to make: that Redis is started again meanwhile is waited
        for."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                done: bytes = self._store.link.run("APPEND", self._owner, self._sid, self._token, _MILLISECONDS,
                                                   self._number, entry, len(self.records), line)
                return done
            except Unavailable:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(AGAIN)

    def gone(self) -> bool:
        """False where it cannot be told."""
        try:
            with self._store.link.told():
                told = self._store.link.client.hget(self._store.link.key(f"of:{self._owner}"), self._sid)
        except ParleyError:
            return False
        return told is None or told[:_NUMBER] != self._number.encode()


class RedisStore(Store):
    """All sessions of a namespace. `check` tells whether they can be read with this cipher."""

    def __init__(self, link: Link, cipher: Seals | None = None) -> None:
        self.link, self.cipher = link, cipher
        self._leases = Leases(link)

    def check(self, make: bool = True) -> None:
        """ConfigError unless what is there was made with the same DATA_KEY, or without one like this. The first to ask
        decides, if it may `make`."""
        fresh = "plain" if self.cipher is None else self.cipher.seal("-", "check", b"check")
        with self.link.told():
            if make:
                self.link.client.set(self.link.key("check"), fresh, nx=True)
            found = (self.link.client.get(self.link.key("check")) or fresh.encode()).decode()
        if (found == "plain") != (self.cipher is None):
            raise ConfigError("the sessions in Redis are " + (
                "in the clear, but DATA_KEY is set: set REDIS_NAMESPACE to one of its own for encrypted ones, or unset "
                "DATA_KEY" if found == "plain" else "encrypted, but DATA_KEY is not set: set the one used before"))
        if self.cipher is not None:
            try:
                self.cipher.unseal("-", "check", found)
            except ValueError:
                raise ConfigError("DATA_KEY is not the one that the sessions in Redis were made with: all servers of "
                                  "one Redis have the same") from None

    def problem(self) -> str | None:
        try:
            with self.link.told():
                self.link.client.set(self.link.key("probe"), 1, ex=60)
        except ParleyError as error:
            return error.message
        return None

    def owners(self) -> list[str]:
        with self.link.told():
            return sorted(owner.decode() for owner in self.link.client.smembers(self.link.key("owners")))

    def index(self, owner: str) -> dict[str, Entry]:
        found = {sid: self._entry(owner, sid, told) for sid, told in self._told(owner).items()}
        return {sid: entry for sid, entry in found.items() if entry is not None}

    def _told(self, owner: str) -> dict[str, str]:
        check_names(owner, "any")
        with self.link.told():
            found = self.link.client.hgetall(self.link.key(f"of:{owner}"))
        return {sid.decode(): told[_NUMBER + 1:].decode() for sid, told in found.items()}

    def read(self, owner: str, sid: str) -> list[Record]:
        check_names(owner, sid)
        with self.link.told():
            found = self.link.client.lrange(self.link.key(f"log:{owner}/{sid}"), 0, -1)
        if not found:
            raise not_found(sid)
        records = self._records(owner, sid, found)
        if describe(records) is None:
            raise not_found(sid)
        return records

    @contextmanager
    def open(self, owner: str, sid: str, wait: float, head: Record | None = None) -> Iterator[Log]:
        check_names(owner, sid)
        token = uuid.uuid4().hex
        try:
            number, found = self._hold(owner, sid, token, wait, head)
            self._leases.hold(f"lock:{owner}/{sid}", token)
            records = self._records(owner, sid, found)
            if head is None and describe(records) is None:
                raise not_found(sid)
            yield RedisLog(self, owner, sid, token, number, records)
        finally:
            self._leases.drop(token, lambda: self.link.run("CLOSE", owner, sid, token))

    def _hold(self, owner: str, sid: str, token: str, wait: float, head: Record | None) -> tuple[str, list[bytes]]:
        """The session's number and lines, once it is ours."""
        made = [] if head is None else numbered(owner, sid, [head])
        new = uuid.uuid4().hex, self.entry(owner, sid, made), self.line(owner, sid, made[0]) if made else b""
        deadline, pause = time.monotonic() + wait, 0.005
        while True:
            found = self.link.run("OPEN", owner, sid, token, _MILLISECONDS, *new)
            if found == b"absent":
                raise not_found(sid)
            if found != b"busy":
                return found[0].decode(), found[1]
            if time.monotonic() >= deadline:
                raise busy(sid, wait)
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(pause * 1.5, LONGEST_PAUSE)

    def create(self, owner: str, choose: Callable[[Collection[str]], str], records: Sequence[Record]) -> str:
        number = uuid.uuid4().hex
        while True:
            used = set(self._told(owner))
            sid = choose(used)
            check_names(owner, sid)
            if sid in used:
                raise Conflict(f"session {sid} exists", param="session_id")
            made = numbered(owner, sid, records)
            if self.link.run("CREATE", owner, sid, number, self.entry(owner, sid, made),
                             *(self.line(owner, sid, record) for record in made)):
                return sid

    def delete(self, owner: str, sid: str) -> None:
        check_names(owner, sid)
        if not self.link.run("DELETE", owner, sid):
            raise not_found(sid)

    # ------------------------------------------------------------ lines and entries

    def line(self, owner: str, sid: str, record: Record) -> bytes:
        return lines.encode(owner, sid, record, self.cipher)[:-1]

    def entry(self, owner: str, sid: str, records: Sequence[Record]) -> str:
        """What a list shows of `records`, as it is kept; "" where it shows nothing."""
        entry = describe(records) if records else None
        if entry is None:
            return ""
        data = msgspec.json.encode(entry)
        return data.decode() if self.cipher is None else self.cipher.seal(owner, f"{owner}/{sid}/entry", data)

    def _entry(self, owner: str, sid: str, kept: str) -> Entry | None:
        if not kept:
            return None
        try:
            data = kept.encode() if self.cipher is None else self.cipher.unseal(owner, f"{owner}/{sid}/entry", kept)
            return msgspec.json.decode(data, type=Entry)
        except ValueError as error:
            return Entry("(damaged)", problem=f"what Redis holds of session {sid} cannot be read: {error}")

    def _records(self, owner: str, sid: str, found: Sequence[bytes]) -> list[Record]:
        try:
            return [lines.decode(owner, sid, number, line, self.cipher) for number, line in enumerate(found)]
        except lines.Newer as error:
            raise Unavailable(f"session {sid} was written by a newer Parley (schema {error}): install that one to use "
                              "it", code="newer_schema", param="session_id") from None
        except lines.Damaged as error:
            raise Gone(f"session {sid} is damaged in Redis and left as it is: {error}. Restore it from a backup, or "
                       "delete the session to use its id again", code="session_damaged", param="session_id") from None
