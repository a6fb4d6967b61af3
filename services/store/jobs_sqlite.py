"""Jobs in `DATA_DIR/jobs.db`: SQLite, for the processes of one machine."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.errors import ConfigError, Gone
from services.store import disk
from services.store.crypto import Seals
from services.store.jobs import (
    CALLBACK,
    CANCELLED,
    ENDED,
    ERROR,
    HIGH,
    MAX_DELAY,
    PACKED,
    PENDING,
    PLAIN,
    RUNNING,
    SECRET,
    SUCCESS,
    Job,
    JobLost,
    JobStore,
    Limits,
    Pulse,
    Row,
    Sizes,
    callback_of,
    checked,
    damaged,
    exists,
    expiry,
    given_up,
    not_failed,
    not_found,
    opened,
    rank_of,
    shown,
    too_many,
)
from services.store.sqlite import connected, failure, made, rewrite, upgrade

log = logging.getLogger("parley.jobs")
FILE = "jobs.db"
SCHEMA = 1
LOOK = 0.1                  # seconds between two looks whether somebody wrote
IDLE = 4                    # connections that are kept open
_TABLES = (
    """CREATE TABLE jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, id TEXT NOT NULL,
        type TEXT NOT NULL, priority TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, start REAL, "end" REAL,
        expires REAL, attempts INTEGER NOT NULL DEFAULT 0, fence INTEGER NOT NULL DEFAULT 0, worker TEXT,
        chunks_done INTEGER NOT NULL DEFAULT 0, chunks_total INTEGER NOT NULL DEFAULT 0, code TEXT,
        payload TEXT NOT NULL, result TEXT, callback TEXT,
        rank INTEGER NOT NULL, turn INTEGER NOT NULL, due REAL NOT NULL DEFAULT 0,
        beat INTEGER NOT NULL DEFAULT 0, lease REAL NOT NULL DEFAULT 0, UNIQUE (id, owner))""",
    "CREATE INDEX by_turn ON jobs (state, rank, turn, number)",
    "CREATE INDEX by_owner ON jobs (owner, state, rank, turn)",
    "CREATE INDEX by_expiry ON jobs (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    f"PRAGMA user_version = {SCHEMA}",
)
_FIELDS = ("number", "owner", "id", "type", "priority", "state", "created", "start", "end", "expires", "attempts",
           "fence", "worker", "chunks_done", "chunks_total", "code", "result", "callback")
_COLUMNS = ", ".join(f'"{name}"' for name in _FIELDS)
_READY = "state = 'pending' AND (due <= :now OR due > :now + :most)"
_MINE = "owner = ? AND id = ? AND fence = ? AND state = 'running'"


class SqliteJobs(JobStore):
    def __init__(self, data_dir: Path, cipher: Seals | None = None, limits: Limits = Limits()) -> None:
        """Makes the file when there is none. ConfigError for a damaged one, or one of a newer Parley."""
        super().__init__(cipher, limits)
        self.path = data_dir / FILE
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()           # guards _idle
        self._watch: sqlite3.Connection | None = None
        self._version = -1
        disk.make_dirs(data_dir)
        made(self.path)
        try:
            self._prepare()
        except Gone as error:
            raise ConfigError(error.message) from error

    def _prepare(self) -> None:
        with self._database() as db:
            db.execute("PRAGMA journal_mode = WAL")
        with self._transaction() as db:
            upgrade(db, self.path, SCHEMA, _TABLES)

    def seal(self) -> int:
        """Encrypt the jobs that are plain, in one transaction; how many. At a start, before others use the file."""
        if self.codec.cipher is None:
            return 0
        with self._transaction() as db:
            sealed = {number for name in PACKED for number in self._seal(db, name)}
            changed = self._seal_secret(db) or bool(sealed)
        if changed:
            with self._database() as db:
                rewrite(db)
        if sealed:
            log.warning("%d jobs that were plain are encrypted now", len(sealed))
        return len(sealed)

    def _seal(self, db: sqlite3.Connection, name: str) -> Iterator[int]:
        for number, owner, id, text in db.execute(
                f"SELECT number, owner, id, {name} FROM jobs WHERE {name} LIKE '{PLAIN}%'").fetchall():
            packed = self.codec.pack(owner, id, self.codec.unpack(owner, id, text))
            db.execute(f"UPDATE jobs SET {name} = ? WHERE number = ?", (packed, number))
            yield number

    def _seal_secret(self, db: sqlite3.Connection) -> bool:
        row = db.execute(f"SELECT value FROM facts WHERE value LIKE '{PLAIN}%'").fetchone()
        if row is not None:
            packed = self.codec.pack(*SECRET, self.codec.unpack(*SECRET, row[0]))
            db.execute("UPDATE facts SET value = ? WHERE name = 'secret'", (packed,))
        return row is not None

    # ------------------------------------------------------------ in and out

    def put(self, job: Job) -> Job:
        job = checked(job)
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM jobs WHERE owner = ? AND id = ?", (job.owner, job.id)).fetchone():
                raise exists()
            return self._insert_if_few(db, job)

    def _insert_if_few(self, db: sqlite3.Connection, job: Job) -> Job:
        busy, = db.execute("SELECT count(*) FROM jobs WHERE owner = ? AND state IN (?, ?) AND type != ?",
                           (job.owner, PENDING, RUNNING, CALLBACK)).fetchone()
        if busy >= self.limits.per_owner:
            raise too_many(self.limits)
        return self._insert(db, job)

    def _insert(self, db: sqlite3.Connection, job: Job) -> Job:
        rank = rank_of(job.priority)
        callback = None if job.callback is None else self.codec.pack(job.owner, job.id, job.callback)
        done = db.execute(
            "INSERT INTO jobs (owner, id, type, priority, state, created, fence, chunks_total, payload, callback, "
            "rank, turn) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (job.owner, job.id, job.type, job.priority, PENDING, job.created, job.fence, job.chunks_total,
             self.codec.pack(job.owner, job.id, job.payload), callback, rank, self._turn(db, job.owner, rank)))
        return replace(job, number=done.lastrowid or 0)

    def _turn(self, db: sqlite3.Connection, owner: str, rank: int) -> int:
        """Owners take turns (start-time fair queueing): one's next job comes a turn after its last one that waits, and
        never before the turn that is served now."""
        now, = db.execute("SELECT coalesce((SELECT turn FROM jobs WHERE state = 'pending' AND rank = ? "
                          "ORDER BY turn LIMIT 1), 0)", (rank,)).fetchone()
        last, = db.execute("SELECT max(turn) FROM jobs WHERE owner = ? AND state = 'pending' AND rank = ?",
                           (owner, rank)).fetchone()
        return max(now, -1 if last is None else last + 1)

    def get(self, owner: str | None, id: str) -> Job:
        with self._database() as db:
            row = self._find(db, owner, id, ", payload")
        try:
            return opened(row, self.codec)
        except ValueError:
            raise damaged(id) from None

    def _find(self, db: sqlite3.Connection, owner: str | None, id: str, more: str = "") -> Row:
        whose, values = _whose(owner)
        row = db.execute(f"SELECT {_COLUMNS}{more} FROM jobs WHERE id = ?{whose} ORDER BY number DESC LIMIT 1",
                         (id, *values)).fetchone()
        if row is None:
            raise not_found()
        return _row(row)

    def all(self, owner: str | None, *, states: Collection[str] = (), types: Collection[str] = (), limit: int = 100,
            before: int | None = None) -> list[Job]:
        where, values = _whose(owner)
        for name, chosen in (("state", states), ("type", types)):
            if chosen:
                where += f" AND {name} IN ({','.join('?' * len(chosen))})"
                values += tuple(chosen)
        with self._database() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE type != '{CALLBACK}' AND number < ?{where} "
                              "ORDER BY number DESC LIMIT ?",
                              (before or 1 << 62, *values, limit)).fetchall()
        return [shown(_row(row), self.codec) for row in rows]

    # ------------------------------------------------------------ the attempts

    def _take(self, worker: str, types: Collection[str], lease_seconds: float) -> Row | None:
        now = time.time()
        named = {f"t{n}": type for n, type in enumerate(types)}
        values = {"now": now, "most": MAX_DELAY, "worker": worker, "lease": lease_seconds, **named}
        with self._transaction() as db:
            row = db.execute(
                f"UPDATE jobs SET state = 'running', start = :now, worker = :worker, attempts = attempts + 1, "
                "fence = fence + 1, beat = 0, lease = :lease, chunks_done = 0, due = 0 WHERE number = ("
                f"SELECT number FROM jobs WHERE {_READY} AND type IN ({', '.join(':' + name for name in named)}) "
                f"ORDER BY rank, turn, number LIMIT 1) RETURNING {_COLUMNS}, payload", values).fetchone()
        return None if row is None else _row(row)

    def renew(self, job: Job, lease_seconds: float, done: int = 0, total: int = 0) -> None:
        with self._transaction() as db:
            found = db.execute("UPDATE jobs SET beat = beat + 1, lease = ?, chunks_done = ?, chunks_total = ? "
                               f"WHERE {_MINE}", (lease_seconds, done, total, job.owner, job.id, job.fence))
            if not found.rowcount:
                raise JobLost(job.id)

    def finish(self, job: Job, state: str, result: Any = None, code: str | None = None) -> Job:
        assert state in (SUCCESS, ERROR), state
        now = time.time()
        ended = replace(job, state=state, result=result, code=code, end=now, expires=expiry(state, now, self.limits))
        packed = self.codec.pack(job.owner, job.id, result)
        with self._transaction() as db:
            if self._end(db, _MINE, (job.owner, job.id, job.fence), ended, packed):
                return ended
            said = db.execute("SELECT 1 FROM jobs WHERE owner = ? AND id = ? AND fence = ? AND state = ?",
                              (job.owner, job.id, job.fence, state)).fetchone()
        if not said:
            raise JobLost(job.id)
        return ended

    def _end(self, db: sqlite3.Connection, where: str, values: tuple[Any, ...], ended: Job, packed: str | None) -> bool:
        """End the job, if there is one `where`; one that tells its callback is put beside it."""
        row = db.execute('UPDATE jobs SET state = ?, result = ?, code = ?, "end" = ?, expires = ? '
                         f"WHERE {where} RETURNING callback",
                         (ended.state, packed, ended.code, ended.end, ended.expires, *values)).fetchone()
        if row is not None and row[0] is not None and ended.state != CANCELLED:
            self._insert(db, callback_of(ended))
        return row is not None

    def cancel(self, owner: str | None, id: str) -> Job:
        with self._transaction() as db:
            row = self._find(db, owner, id)
            if row["state"] not in ENDED:
                now = time.time()
                row.update(state=CANCELLED, end=now, expires=expiry(CANCELLED, now, self.limits))
                db.execute('UPDATE jobs SET state = ?, "end" = ?, expires = ? WHERE number = ?',
                           (CANCELLED, now, row["expires"], row["number"]))
        return shown(row, self.codec)

    def _again(self, job: Job) -> Job:
        with self._transaction() as db:
            gone = db.execute("DELETE FROM jobs WHERE owner = ? AND id = ? AND fence = ? AND state = ?",
                              (job.owner, job.id, job.fence, ERROR))
            if not gone.rowcount:
                raise not_failed(PENDING)
            return self._insert_if_few(db, job)

    def release(self, job: Job, delay: float = 0.0, *, counted: bool = False, back: bool = False) -> None:
        assert delay <= MAX_DELAY, delay
        with self._transaction() as db:
            if not self._back(db, _MINE, (job.owner, job.id, job.fence), time.time() + delay, counted):
                raise JobLost(job.id)
            if back:
                rank = rank_of(job.priority)
                db.execute("UPDATE jobs SET rank = ?, turn = ? WHERE owner = ? AND id = ?",     # its number is old
                           (rank, self._turn(db, job.owner, rank) + 1, job.owner, job.id))

    def _back(self, db: sqlite3.Connection, where: str, values: tuple[Any, ...], due: float, counted: bool) -> bool:
        """To the front of the queue."""
        done = db.execute(
            "UPDATE jobs SET state = 'pending', rank = CASE priority WHEN ? THEN ? ELSE ? END, turn = 0, due = ?, "
            f"attempts = attempts - ?, chunks_done = 0 WHERE {where}",
            (HIGH, rank_of(HIGH, front=True), rank_of("", front=True), due, 0 if counted else 1, *values))
        return done.rowcount == 1

    def _pulses(self, worker: str | None = None) -> list[Pulse]:
        with self._database() as db:
            rows = db.execute("SELECT owner, id, fence, beat, lease FROM jobs WHERE state = 'running' "
                              "AND worker = coalesce(?, worker)", (worker,)).fetchall()
        return [Pulse(*row) for row in rows]

    def _lose(self, pulse: Pulse, most: int) -> bool:
        where, values = f"{_MINE} AND beat = ?", (pulse.owner, pulse.id, pulse.fence, pulse.beat)
        with self._transaction() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {where}", values).fetchone()
            if row is None:
                return False
            attempts, now = _row(row)["attempts"], time.time()
            if attempts < most:
                return self._back(db, where, values, 0.0, counted=True)
            result, code = given_up(attempts)
            ended = Job(owner=pulse.owner, type="", payload={}, id=pulse.id, state=ERROR, code=code, end=now,
                        fence=pulse.fence, expires=expiry(ERROR, now, self.limits))
            return self._end(db, where, values, ended, self.codec.pack(pulse.owner, pulse.id, result))

    # ------------------------------------------------------------ besides

    def tell_callback(self, job: Job, callback: dict[str, Any]) -> None:
        with self._transaction() as db:
            db.execute("UPDATE jobs SET callback = ? WHERE owner = ? AND id = ? AND fence = ? AND state = ?",
                       (self.codec.pack(job.owner, job.id, callback), job.owner, job.id, job.fence, job.state))

    def sweep(self, now: float | None = None) -> int:
        with self._transaction() as db:
            return db.execute("DELETE FROM jobs WHERE expires <= ?", (time.time() if now is None else now,)).rowcount

    def sizes(self, owner: str | None = None) -> Sizes:
        whose, values = _whose(owner)
        with self._database() as db:
            row = db.execute(
                "SELECT coalesce(sum(state = 'pending' AND priority != ?), 0), "
                "coalesce(sum(state = 'pending' AND priority = ?), 0), "
                "coalesce(sum(state = 'pending' AND due > ?), 0), coalesce(sum(state = 'running'), 0), "
                "coalesce(sum(state = 'error'), 0) FROM jobs "
                f"WHERE state IN ('pending', 'running', 'error') AND type != '{CALLBACK}'{whose}",
                (HIGH, HIGH, time.time(), *values)).fetchone()
        return Sizes(*row)

    def busy(self) -> bool:
        with self._database() as db:
            return db.execute("SELECT 1 FROM jobs WHERE state IN (?, ?) LIMIT 1",
                              (PENDING, RUNNING)).fetchone() is not None

    def _secret(self, fresh: str) -> str:
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO facts VALUES ('secret', ?)", (fresh,))
            return str(db.execute("SELECT value FROM facts WHERE name = 'secret'").fetchone()[0])

    def wait(self, seconds: float) -> None:
        """For one thread: SQLite counts what other connections commit, of any process."""
        until = time.monotonic() + seconds
        while not self._changed() and (left := until - time.monotonic()) > 0:
            time.sleep(min(LOOK, left))

    def _changed(self) -> bool:
        try:
            self._watch = self._watch or connected(self.path)
            version, = self._watch.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            raise self._told(error) from error
        before, self._version = self._version, version
        return bool(before != version)

    def close(self) -> None:
        with self._lock:
            for db in [*self._idle, *([self._watch] if self._watch else [])]:
                db.close()
            self._idle, self._watch = [], None

    # ------------------------------------------------------------ the file

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Durable when the block ends."""
        with self._database() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                if db.in_transaction:           # SQLite ends it by itself when the disk is full
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                db = self._idle.pop() if self._idle else None
            db = db or connected(self.path)
            try:
                yield db
            except BaseException:
                db.close()
                raise
        except sqlite3.Error as error:
            raise self._told(error) from error
        with self._lock:
            if len(self._idle) < IDLE:
                self._idle.append(db)
                return
        db.close()

    def _told(self, error: sqlite3.Error) -> Exception:
        return failure(error, self.path) or Gone(
            f"{self.path} is damaged ({error}): stop the server and restore it from a backup, or remove it, which "
            "loses the jobs in it and nothing else", code="jobs_damaged")


def _whose(owner: str | None) -> tuple[str, tuple[Any, ...]]:
    return ("", ()) if owner is None else (" AND owner = ?", (owner,))


def _row(row: tuple[Any, ...]) -> Row:
    return dict(zip((*_FIELDS, "payload"), row, strict=False))
