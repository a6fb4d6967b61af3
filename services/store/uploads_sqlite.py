"""Uploads in `DATA_DIR/uploads.db`: SQLite, for the processes of one machine."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from services.errors import ConfigError
from services.store import disk
from services.store.crypto import Seals
from services.store.sqlite import connected, failure, made, rewrite, upgrade
from services.store.uploads import About, Upload, UploadStore, not_found

FILE = "uploads.db"
SCHEMA = 1
AT_ONCE = 100               # pieces of one look
_TABLES = (
    """CREATE TABLE uploads (number INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL, created REAL NOT NULL, size INTEGER NOT NULL, about BLOB NOT NULL,
        sealed INTEGER NOT NULL)""",
    """CREATE TABLE pieces (number INTEGER PRIMARY KEY AUTOINCREMENT, upload INTEGER NOT NULL, data BLOB NOT NULL,
        sealed INTEGER NOT NULL)""",
    "CREATE INDEX of_owner ON uploads (owner, kind, number)",
    "CREATE INDEX of_upload ON pieces (upload, number)",
    f"PRAGMA user_version = {SCHEMA}",
)
_COLUMNS = "owner, id, kind, number, created, size, about, sealed"


class SqliteUploads(UploadStore):
    def __init__(self, data_dir: Path, cipher: Seals | None = None, most: int = 1 << 30) -> None:
        """Makes the file when there is none. ConfigError for a damaged one, or one of a newer Parley."""
        super().__init__(cipher, most)
        self.path = data_dir / FILE
        disk.make_dirs(data_dir)
        made(self.path)
        with self._database() as db:
            db.execute("PRAGMA journal_mode = WAL")
        with self._transaction() as db:
            upgrade(db, self.path, SCHEMA, _TABLES)

    def seal(self) -> int:
        """Encrypt what is plain, in one transaction; how many uploads. At a start, before others use the file."""
        if self.cipher is None:
            return 0
        with self._transaction() as db:
            plain = db.execute("SELECT number, owner, id, about FROM uploads WHERE sealed = 0").fetchall()
            for number, owner, id, about in plain:
                db.execute("UPDATE uploads SET about = ?, sealed = 1 WHERE number = ?",
                           (self.pack(owner, f"{id}/about", about), number))
            for number, owner, id, data in db.execute(
                    "SELECT pieces.number, owner, id, data FROM pieces JOIN uploads ON upload = uploads.number "
                    "WHERE pieces.sealed = 0").fetchall():
                db.execute("UPDATE pieces SET data = ?, sealed = 1 WHERE number = ?",
                           (self.pack(owner, id, data), number))
        if plain:
            with self._database() as db:
                rewrite(db)
        return len(plain)

    def put(self, owner: str, id: str, kind: str, about: About, pieces: Sequence[bytes] = ()) -> Upload:
        size, created = sum(map(len, pieces)), time.time()
        with self._transaction() as db:
            used, = db.execute("SELECT coalesce(sum(size), 0) FROM uploads WHERE owner = ?", (owner,)).fetchone()
            self.check_room(used, size)
            number = db.execute(f"INSERT INTO uploads ({_COLUMNS}) VALUES (?, ?, ?, NULL, ?, ?, ?, ?)",
                                (owner, id, kind, created, size, self.pack_about(owner, id, about),
                                 self.cipher is not None)).lastrowid or 0
            for piece in pieces:
                self._add(db, number, owner, id, piece)
        return Upload(owner, id, kind, number, created, size, about)

    def _add(self, db: sqlite3.Connection, number: int, owner: str, id: str, piece: bytes) -> None:
        db.execute("INSERT INTO pieces (upload, data, sealed) VALUES (?, ?, ?)",
                   (number, self.pack(owner, id, piece), self.cipher is not None))

    def get(self, owner: str | None, id: str) -> Upload:
        with self._database() as db:
            return self._find(db, owner, id)

    def _find(self, db: sqlite3.Connection, owner: str | None, id: str) -> Upload:
        row = db.execute(f"SELECT {_COLUMNS} FROM uploads WHERE id = ?", (id,)).fetchone()
        if row is None or owner not in (None, row[0]):
            raise not_found(id)
        return self._upload(row)

    def _upload(self, row: tuple[str, str, str, int, float, int, bytes, int]) -> Upload:
        owner, id, kind, number, created, size, about, sealed = row
        return Upload(owner, id, kind, number, created, size, self.unpack_about(owner, id, about, bool(sealed)))

    def all(self, owner: str | None, kind: str, limit: int = 100, before: int | None = None) -> list[Upload]:
        whose, values = ("", ()) if owner is None else (" AND owner = ?", (owner,))
        with self._database() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM uploads WHERE kind = ? AND number < ?{whose} "
                              "ORDER BY number DESC LIMIT ?", (kind, before or 1 << 62, *values, limit)).fetchall()
        return [self._upload(row) for row in rows]

    def change(self, owner: str, id: str, change: Callable[[About], About]) -> Upload:
        with self._transaction() as db:
            there = self._find(db, owner, id)
            db.execute("UPDATE uploads SET about = ?, sealed = ? WHERE number = ?",
                       (self.pack_about(owner, id, change(there.about)), self.cipher is not None, there.number))
            return self._find(db, owner, id)

    def append(self, owner: str, id: str, piece: bytes) -> None:
        with self._transaction() as db:
            number = self._find(db, owner, id).number
            self._add(db, number, owner, id, piece)
            db.execute("UPDATE uploads SET size = size + ? WHERE number = ?", (len(piece), number))

    def pieces(self, owner: str, id: str, start: int = 0) -> Iterator[bytes]:
        last, skip = 0, start
        while True:
            with self._database() as db:        # not over the yield: a reader that is slow keeps the log from its end
                rows = db.execute(
                    "SELECT pieces.number, data, pieces.sealed FROM pieces JOIN uploads ON upload = uploads.number "
                    "WHERE owner = ? AND id = ? AND pieces.number > ? ORDER BY pieces.number LIMIT ? OFFSET ?",
                    (owner, id, last, AT_ONCE, skip)).fetchall()
            for _, data, sealed in rows:
                yield self.unpack(owner, id, data, bool(sealed))
            if len(rows) < AT_ONCE:
                return
            last, skip = rows[-1][0], 0

    def delete(self, owner: str, id: str) -> None:
        with self._transaction() as db:
            number = self._find(db, owner, id).number
            db.execute("DELETE FROM pieces WHERE upload = ?", (number,))
            db.execute("DELETE FROM uploads WHERE number = ?", (number,))

    def close(self) -> None:
        """Nothing is kept open."""

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(connected(self.path)) as db:
                yield db
        except sqlite3.Error as error:
            raise failure(error, self.path) or ConfigError(
                f"{self.path} is damaged ({error}): move it away, or bring it back from a copy") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._database() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                if db.in_transaction:           # SQLite itself ends it when the disk is full
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
