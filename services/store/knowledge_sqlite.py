"""Knowledge bases as SQLite files: `DATA_DIR/knowledge/<owner>/<name>.sqlite3`. FTS5 matches words, numpy vectors.

With a cipher the file holds neither words nor vectors in the clear: both indexes are in memory only then, made from
the sealed chunks at the first search. The vectors are in memory in any case, for as many bases as fit `MEMORY`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from services.errors import Gone, ParleyError
from services.store import disk
from services.store.base import is_owner
from services.store.crypto import Cipher
from services.store.knowledge import SCHEMA, Chunk, Library, check_names, exists, is_name, not_found
from services.store.knowledge_memory import FTS, Loaded, matching
from services.store.knowledge_sql import Codec, Connection, SqlCollection
from services.store.sqlite import connected, failure

log = logging.getLogger("parley.store")
SUFFIX = ".sqlite3"
MEMORY = 512 << 20          # bytes of vectors, and of words that are sealed in their files, held for all bases
IDLE = 2                    # connections of a base that are kept open
MOST_IDLE = 64              # connections of all bases that are; each has three files open
_BESIDE = ("-wal", "-shm", ".lock")
_WORD = re.compile(r"\w")
_TABLES = f"""
CREATE TABLE about (body TEXT NOT NULL, salt TEXT NOT NULL, deletions INTEGER NOT NULL);
CREATE TABLE sources (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
    body TEXT NOT NULL, payload BLOB);
CREATE TABLE documents (id INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL, named TEXT NOT NULL,
    digest TEXT NOT NULL, characters INTEGER NOT NULL, chunks INTEGER NOT NULL, indexed INTEGER NOT NULL,
    body TEXT NOT NULL, text TEXT NOT NULL, UNIQUE (source, named));
CREATE TABLE chunks (id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL, number INTEGER NOT NULL,
    start_at INTEGER NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL, vector BLOB NOT NULL);
CREATE INDEX of_document ON chunks (document);
PRAGMA user_version = {SCHEMA};
"""
_WORDS = f"""
CREATE VIRTUAL TABLE words {FTS.format("content = 'chunks', content_rowid = 'id', ")};
CREATE TRIGGER chunk_added AFTER INSERT ON chunks BEGIN
    INSERT INTO words (rowid, title, text) VALUES (new.id, new.title, new.text);
END;
CREATE TRIGGER chunk_gone AFTER DELETE ON chunks BEGIN
    INSERT INTO words (words, rowid, title, text) VALUES ('delete', old.id, old.title, old.text);
END;
"""


class SqliteLibrary(Library):
    """The bases in `data_dir`. Any thread may use it; other processes use the same files."""

    def __init__(self, data_dir: Path, cipher: Cipher | None = None) -> None:
        self._folder = data_dir / "knowledge"
        self._cipher = cipher
        self._loaded: OrderedDict[Path, Loaded] = OrderedDict()    # least recently used first; under _lock
        # open files by inode, least recently used first; under _lock
        self._idle: OrderedDict[Path, list[tuple[int, sqlite3.Connection]]] = OrderedDict()
        self._lock = threading.Lock()

    def create(self, owner: str, name: str, about: dict[str, object]) -> SqliteCollection:
        path = self._path(owner, name)
        disk.make_dirs(self._folder, follow=False)
        disk.make_dirs(path.parent, follow=False)
        with self._fresh(path, owner, name) as fresh:
            fresh.make(about)
            self._let_go(fresh.path)
            with disk.told(path):
                try:
                    os.link(fresh.path, path)
                except FileExistsError:
                    raise exists(name) from None
                disk.fsync_dir(path.parent)
        return self.open(owner, name)

    @contextmanager
    def _fresh(self, path: Path, owner: str, name: str) -> Iterator[SqliteCollection]:
        """An empty file beside `path`, for the time of the block."""
        fresh = path.with_name(f".{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        try:
            with disk.told(fresh):
                os.close(disk.open_file(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL))
            yield self._collection(fresh, owner, name)
        finally:
            self._let_go(fresh)
            _remove(fresh)

    def _let_go(self, path: Path) -> None:
        """Close what is kept open of a file: all of it is in the file then, and not in SQLite's log beside it."""
        with self._lock:
            for _, db in self._idle.pop(path, []):
                db.close()

    def seal(self) -> int:
        """Encrypt the bases that are plain, each by an atomic replacement; returns how many. Nobody else uses them."""
        sealed = 0
        for owner, name in self.names():
            path = self._path(owner, name)
            plain = SqliteCollection(path, owner, name, Codec(None, owner, name), self)
            if self._cipher is None or not plain.has_words():
                continue
            with self._fresh(path, owner, name) as fresh:
                fresh.copy(plain)
                self._let_go(fresh.path)
                self._let_go(path)
                disk.rename_durable(fresh.path, path)
                _remove_beside(path)
            sealed += 1
        if sealed:
            log.warning("%d knowledge bases that were plain are encrypted now", sealed)
        return sealed

    def open(self, owner: str, name: str) -> SqliteCollection:
        path = self._path(owner, name)
        if path.is_symlink() or not path.is_file():
            raise not_found(name)
        return self._collection(path, owner, name)

    def delete(self, owner: str, name: str) -> None:
        path = self._path(owner, name)
        if not path.is_file():
            raise not_found(name)
        try:
            disk.unlink_durable(path)
        except FileNotFoundError:
            raise not_found(name) from None
        _remove(path)
        self._let_go(path)
        with self._lock:
            self._loaded.pop(path, None)

    @contextmanager
    def connection(self, path: Path) -> Iterator[sqlite3.Connection]:
        """A connection to the file, which must be there, for one thread. One is kept open while nobody uses it: the
        last one that closes writes all of SQLite's log into the file. sqlite3.Error."""
        inode = path.stat().st_ino if path.is_file() else 0
        db = None
        with self._lock:
            known = self._idle.get(path, [])
            while known and db is None:
                of, db = known.pop()
                if of != inode:             # that file was deleted, perhaps by another process
                    db.close()
                    db = None
        db = db or connected(path)
        try:
            yield db
        except BaseException:
            db.close()
            raise
        for spare in self._kept(path, inode, db):
            spare.close()

    def _kept(self, path: Path, inode: int, db: sqlite3.Connection) -> list[sqlite3.Connection]:
        """Keep a connection open; those that are to be closed instead."""
        with self._lock:
            if len(self._idle.get(path, [])) >= IDLE or not path.is_file():
                return [db]
            self._idle.setdefault(path, []).append((inode, db))
            self._idle.move_to_end(path)
            spare: list[sqlite3.Connection] = []
            while sum(map(len, self._idle.values())) > MOST_IDLE:
                spare += [one for _, one in self._idle.popitem(last=False)[1]]
            return spare

    def names(self) -> list[tuple[str, str]]:
        found = [(path.parent.name, path.name[:-len(SUFFIX)]) for path in self._folder.glob(f"*/*{SUFFIX}")
                 if path.is_file() and not path.is_symlink()]
        return sorted((owner, name) for owner, name in found if is_owner(owner) and is_name(name))

    def _path(self, owner: str, name: str) -> Path:
        check_names(owner, name)
        return self._folder / owner / (name + SUFFIX)

    def _collection(self, path: Path, owner: str, name: str) -> SqliteCollection:
        return SqliteCollection(path, owner, name, Codec(self._cipher, owner, name), self)

    def loaded(self, path: Path, sealed: bool) -> Loaded:
        """What is in memory of a base, used just now; others go when there is too much."""
        with self._lock:
            found = self._loaded.pop(path, None) or Loaded(sealed)
            self._loaded[path] = found
            while len(self._loaded) > 1 and sum(one.size for one in self._loaded.values()) > MEMORY:
                self._loaded.popitem(last=False)
        return found


class SqliteCollection(SqlCollection):
    def __init__(self, path: Path, owner: str, name: str, codec: Codec, library: SqliteLibrary) -> None:
        super().__init__(owner, name, codec)
        self.path = path
        self._library = library

    def make(self, about: dict[str, object]) -> None:
        """The tables of a file that is empty."""
        with self._database() as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(_TABLES + ("" if self._codec.sealed else _WORDS))
            begin = int.from_bytes(os.urandom(6), "big")        # not that of a base of this name that was deleted
            db.execute("INSERT INTO about VALUES (?, ?, ?)", (self._codec.pack(json.dumps(about)),
                                                              self._codec.pack(os.urandom(16).hex()), begin))

    def has_words(self) -> bool:
        """Whether its words are in the file, as those of plain bases are."""
        with self._reading() as db:
            return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'words'").fetchone() is not None

    def copy(self, plain: SqliteCollection) -> None:
        """Take over all that another base holds in the clear, into this one, which is an empty file."""
        self.make(plain.about())
        pack, pack_bytes = self._codec.pack, self._codec.pack_bytes
        with plain._reading() as old, self._transaction() as new:
            (salt, deletions), = old.execute("SELECT salt, deletions FROM about").fetchall()
            new.execute("UPDATE about SET salt = ?, deletions = ?", (pack(salt), deletions))
            for number, id, state, body, payload in old.execute("SELECT * FROM sources"):
                new.execute("INSERT INTO sources VALUES (?, ?, ?, ?, ?)", (
                    number, id, state, pack(body), None if payload is None else pack_bytes(payload)))
            for *numbers, body, text in old.execute("SELECT * FROM documents"):
                new.execute("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (
                    *numbers, pack(body), pack(text)))
            for *numbers, title, text, vector in old.execute("SELECT * FROM chunks"):
                new.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?)", (
                    *numbers, pack(title), pack(text), pack_bytes(vector)))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._database() as db:
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._database() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """A connection of this thread's own; the file must be there."""
        try:
            with self._library.connection(self.path) as db:
                yield db
        except sqlite3.Error as error:
            raise self._told(error) from error
        except ValueError as error:
            raise Gone(f"the knowledge base {self.name} cannot be decrypted ({error}): restore its file from a backup",
                       code="knowledge_damaged") from error

    def _told(self, error: sqlite3.Error) -> ParleyError:
        if not self.path.is_file():
            return not_found(self.name)
        return failure(error, self.path) or Gone(
            f"the knowledge base {self.name} is damaged ({self.path.name}: {error}): restore its file from a backup, "
            "or delete the base", code="knowledge_damaged")

    def _insert(self, db: Connection, document: int, chunk: Chunk) -> None:
        db.execute("INSERT INTO chunks (document, number, start_at, title, text, vector) VALUES (?, ?, ?, ?, ?, ?)",
                   (document, chunk.number, chunk.start, self._codec.pack(chunk.title), self._codec.pack(chunk.text),
                    self._codec.pack_bytes(chunk.vector)))

    # ------------------------------------------------------------ search

    def near(self, vector: bytes, k: int) -> list[tuple[int, float]]:
        wanted = np.frombuffer(vector, "<f4")
        loaded = self._load()
        with loaded.lock:
            ids, vectors = loaded.ids, loaded.vectors
        if vectors.shape[1] != wanted.size or not ids.size:
            return []
        scores = vectors @ wanted
        best = np.argpartition(-scores, k - 1)[:k] if k < scores.size else np.arange(scores.size)
        order = best[np.lexsort((ids[best], -scores[best]))]
        return [(int(ids[at]), float(scores[at])) for at in order]

    def matching(self, words: Sequence[str], k: int) -> list[tuple[int, float]]:
        phrases = ['"' + word.replace('"', '""').replace("\0", " ") + '"' for word in words if _WORD.search(word)]
        if not phrases:
            return []
        if self._codec.sealed:
            loaded = self._load()
            with loaded.lock:
                return matching(loaded.words, phrases, loaded.ids.size, k)
        with self._reading() as db:
            count, = db.execute("SELECT coalesce(sum(chunks), 0) FROM documents").fetchone()
            return matching(db, phrases, count, k)

    def _load(self) -> Loaded:
        """The base's part in memory, brought up to what the file holds."""
        loaded = self._library.loaded(self.path, self._codec.sealed)
        with loaded.lock, self._reading() as db:
            deletions, = db.execute("SELECT deletions FROM about").fetchone()
            if deletions != loaded.deletions:
                loaded.clear(deletions)
            new = db.execute(f"SELECT id, vector{', title, text' if self._codec.sealed else ''} FROM chunks "
                             "WHERE id > ? ORDER BY id", (loaded.last,)).fetchall()
            if new:
                loaded.add([row[0] for row in new], [self._codec.unpack_bytes(row[1]) for row in new])
            if new and self._codec.sealed:
                loaded.tell((id, self._codec.unpack(title), self._codec.unpack(text)) for id, _, title, text in new)
        return loaded

    @contextmanager
    def held(self) -> Iterator[bool]:
        try:
            with disk.locked(self.path, 0.0):
                yield True
        except TimeoutError:
            yield False


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
    _remove_beside(path)


def _remove_beside(path: Path) -> None:
    for end in _BESIDE:
        with suppress(FileNotFoundError):
            os.unlink(path.with_name(path.name + end))
