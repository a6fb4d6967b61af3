"""Knowledge bases in PostgreSQL with pgvector: a schema for each, so that one is dropped, and backed up, by itself.

Vectors are compared exactly until PostgreSQL's planner finds the HNSW index cheaper. Words are those of PostgreSQL's
English dictionary, each weighed by how rare it is, as BM25 does; PostgreSQL has no BM25 of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from services.errors import ConfigError, ParleyError, StorageFull, Unavailable
from services.store.knowledge import Chunk, Library, check_names, exists, not_found
from services.store.knowledge_sql import Codec, Connection, Rows, SqlCollection

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger("parley.store")
IDLE = 8                    # connections kept open while nobody uses them
MOST_INDEXED = 2000         # numbers of a vector that pgvector's HNSW takes
_TOKEN = re.compile(r"[^\W_]+")
_SETUP = (
    "CREATE SCHEMA IF NOT EXISTS parley",
    "CREATE EXTENSION IF NOT EXISTS vector",
    "CREATE TABLE IF NOT EXISTS parley.bases (owner text NOT NULL, name text NOT NULL, schema text NOT NULL UNIQUE, "
    "PRIMARY KEY (owner, name))",
)
_TABLES = (
    "CREATE TABLE about (body text NOT NULL, salt text NOT NULL, deletions bigint NOT NULL)",
    "CREATE TABLE sources (number bigserial PRIMARY KEY, id text NOT NULL UNIQUE, state text NOT NULL, "
    "body text NOT NULL, payload bytea)",
    "CREATE TABLE documents (id bigserial PRIMARY KEY, source text NOT NULL, named text NOT NULL, "
    "digest text NOT NULL, characters integer NOT NULL, chunks integer NOT NULL, indexed integer NOT NULL, "
    "body text NOT NULL, text text NOT NULL, UNIQUE (source, named))",
    "CREATE TABLE chunks (id bigserial PRIMARY KEY, document bigint NOT NULL, number integer NOT NULL, "
    "start_at integer NOT NULL, title text NOT NULL, text text NOT NULL, words tsvector NOT NULL, "
    "vector vector NOT NULL)",
    "CREATE INDEX of_document ON chunks (document)",
    "CREATE INDEX by_words ON chunks USING gin (words)",
)
_MATCHING = """
WITH asked AS (SELECT DISTINCT phraseto_tsquery('english', word) AS query FROM unnest(?::text[]) AS word),
     met AS (SELECT query, count(id)::float AS hits FROM asked LEFT JOIN chunks ON words @@ query
             WHERE numnode(query) > 0 GROUP BY query),
     weighed AS (SELECT query, ln(1 + (n - hits + 0.5) / (hits + 0.5)) AS rarity
                 FROM met CROSS JOIN (SELECT count(*)::float AS n FROM chunks) AS everything),
     whole AS (SELECT sum(rarity) AS rarity FROM weighed)
SELECT id, sum(weighed.rarity) / whole.rarity AS share, sum(weighed.rarity * ts_rank(words, query, 1)) AS score
FROM weighed CROSS JOIN whole JOIN chunks ON words @@ query GROUP BY id, whole.rarity
ORDER BY share DESC, score DESC, id LIMIT ?
"""


class PostgresLibrary(Library):
    """The bases in the database at `url`, which is set up at the first use. Any thread may use it."""

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise ConfigError("KNOWLEDGE_URL is set, which needs a driver that is not installed: "
                              "pip install 'psycopg[binary]'") from None
        self._driver = psycopg
        self._url = url
        self._idle: list[psycopg.Connection[Any]] = []      # append and pop are atomic
        self._ready = False

    def create(self, owner: str, name: str, about: dict[str, Any]) -> PostgresCollection:
        check_names(owner, name)
        schema = "kb_" + hashlib.sha256(f"{owner}/{name}".encode()).hexdigest()[:32]
        with self.connection(name) as db, db.transaction():
            if db.execute("INSERT INTO parley.bases VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                          (owner, name, schema)).rowcount != 1:
                raise exists(name)
            db.execute(f"CREATE SCHEMA {schema}")
            _within(db, schema)
            for statement in _TABLES:
                db.execute(statement)
            db.execute("INSERT INTO about VALUES (%s, %s, 0)", (json.dumps(about), os.urandom(16).hex()))
        return PostgresCollection(self, owner, name, schema)

    def open(self, owner: str, name: str) -> PostgresCollection:
        check_names(owner, name)
        with self.connection(name) as db:
            row = db.execute("SELECT schema FROM parley.bases WHERE owner = %s AND name = %s",
                             (owner, name)).fetchone()
        if row is None:
            raise not_found(name)
        return PostgresCollection(self, owner, name, row[0])

    def delete(self, owner: str, name: str) -> None:
        check_names(owner, name)
        with self.connection(name) as db, db.transaction():
            row = db.execute("DELETE FROM parley.bases WHERE owner = %s AND name = %s RETURNING schema",
                             (owner, name)).fetchone()
            if row is None:
                raise not_found(name)
            db.execute(f"DROP SCHEMA {row[0]} CASCADE")

    def names(self) -> list[tuple[str, str]]:
        with self.connection("") as db:
            return [(owner, name) for owner, name in db.execute(
                'SELECT owner, name FROM parley.bases ORDER BY owner COLLATE "C", name COLLATE "C"').fetchall()]

    @contextmanager
    def connection(self, name: str) -> Iterator[psycopg.Connection[Any]]:
        """A connection of this thread's own, for the base `name`. One that failed is not used again."""
        try:
            db = self._taken()
            try:
                yield db
            except BaseException:
                db.close()
                raise
            if len(self._idle) < IDLE:
                self._idle.append(db)
            else:
                db.close()
        except self._driver.Error as error:
            raise self._told(error, name) from error

    def _taken(self) -> psycopg.Connection[Any]:
        while self._idle:
            db = self._idle.pop()
            try:
                db.execute("SELECT 1")
                return db
            except self._driver.Error as error:     # the database was restarted, or closed what was idle
                log.info("a connection to PostgreSQL is gone: %s", error)
                db.close()
        db = self._driver.connect(self._url, autocommit=True, connect_timeout=10)
        if not self._ready:
            with db.transaction():
                db.execute("SELECT pg_advisory_xact_lock(7166)")       # two at once would both make the schema
                for statement in _SETUP:
                    db.execute(statement)
            self._ready = True
        return db

    def _told(self, error: psycopg.Error, name: str) -> ParleyError:
        errors = self._driver.errors
        if isinstance(error, errors.UndefinedTable | errors.InvalidSchemaName):
            return not_found(name)
        first = str(error).strip().split("\n")[0]
        if isinstance(error, errors.DiskFull):
            return StorageFull(f"PostgreSQL (KNOWLEDGE_URL) cannot take more: {first}")
        log.warning("PostgreSQL (KNOWLEDGE_URL): %s", error)
        return Unavailable("the database of the knowledge bases (KNOWLEDGE_URL) does not work; the server's log says "
                           "more", code="store_failed")


class _Statements:
    """A psycopg connection that takes statements as the shared code writes them. PostgreSQL's texts have no zero bytes:
    they are left out."""

    def __init__(self, db: psycopg.Connection[Any]) -> None:
        self._db = db

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Rows:
        return self._db.execute(sql.replace("?", "%s"), [value.replace("\0", "") if isinstance(value, str) else value
                                                         for value in values])


class PostgresCollection(SqlCollection):
    def __init__(self, library: PostgresLibrary, owner: str, name: str, schema: str) -> None:
        super().__init__(owner, name, Codec(None, owner, name))
        self._library, self._schema = library, schema

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._opened("") as db:
            yield db

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """The lock on its row keeps the base from being deleted meanwhile."""
        with self._opened("FOR KEY SHARE") as db:
            yield db

    @contextmanager
    def _opened(self, lock: str) -> Iterator[Connection]:
        with self._library.connection(self.name) as db, db.transaction():
            if not lock:
                db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            if db.execute(f"SELECT 1 FROM parley.bases WHERE schema = %s {lock}", (self._schema,)).fetchone() is None:
                raise not_found(self.name)
            _within(db, self._schema)
            yield _Statements(db)

    def _insert(self, db: Connection, document: int, chunk: Chunk) -> None:
        numbers = np.frombuffer(chunk.vector, "<f4")
        if chunk.number == 0 and numbers.size <= MOST_INDEXED:
            db.execute(f"CREATE INDEX IF NOT EXISTS near_{numbers.size} ON chunks USING hnsw "
                       f"((vector::vector({numbers.size})) vector_cosine_ops)")
        db.execute("INSERT INTO chunks (document, number, start_at, title, text, words, vector) "
                   "VALUES (?, ?, ?, ?, ?, to_tsvector('english', ?), ?::vector)",
                   (document, chunk.number, chunk.start, chunk.title, chunk.text,
                    _plain(f"{chunk.title} {chunk.text}"), _spelled(numbers)))

    def _drop_chunks(self, db: Connection, document: int | None) -> None:
        super()._drop_chunks(db, document)
        if document is None:            # what comes next may have vectors of another length
            for name, in db.execute("SELECT indexname FROM pg_indexes WHERE schemaname = ? AND tablename = 'chunks' "
                                    "AND starts_with(indexname, 'near_')", (self._schema,)).fetchall():
                db.execute(f"DROP INDEX {name}")

    # ------------------------------------------------------------ search

    def near(self, vector: bytes, k: int) -> list[tuple[int, float]]:
        numbers = np.frombuffer(vector, "<f4")
        with self._reading() as db:
            row = db.execute("SELECT vector_dims(vector) FROM chunks LIMIT 1").fetchone()
            if row is None or row[0] != numbers.size:
                return []
            db.execute(f"SET LOCAL hnsw.ef_search = {min(1000, max(100, 2 * k))}")
            found = db.execute(
                f"SELECT id, vector::vector({numbers.size}) <=> ?::vector({numbers.size}) AS distance FROM chunks "
                "ORDER BY distance LIMIT ?", (_spelled(numbers), k)).fetchall()
        return sorted(((id, 1.0 - distance) for id, distance in found), key=lambda one: (-one[1], one[0]))

    def matching(self, words: Sequence[str], k: int) -> list[tuple[int, float]]:
        asked = [plain for word in words if (plain := _plain(word))]
        if not asked:
            return []
        with self._reading() as db:
            return [(id, float(share)) for id, share, _ in db.execute(_MATCHING, (asked, k)).fetchall()]

    @contextmanager
    def held(self) -> Iterator[bool]:
        """By a lock of the connection's, which ends with it."""
        with self._library.connection(self.name) as db:
            values = (self._schema,)
            row = db.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", values).fetchone()
            mine = row is not None and bool(row[0])
            yield mine
            if mine:
                db.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", values)


def _within(db: psycopg.Connection[Any], schema: str) -> None:
    """Names mean the base's tables until the transaction ends; types and operators are the extension's."""
    db.execute(f"SELECT set_config('search_path', '{schema}, ' || (SELECT quote_ident(nspname) FROM pg_extension "
               "JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'vector'), true)")


def _plain(text: str) -> str:
    """Words without accents, split wherever there is no letter or digit: as FTS5's unicode61 reads them."""
    bare = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    return " ".join(_TOKEN.findall(bare))


def _spelled(numbers: np.ndarray) -> str:
    return "[" + ",".join(map(repr, numbers.tolist())) + "]"
