"""What the knowledge bases' SQL back-ends have in common: the same tables, one statement for both dialects.

Statements are written with `?`. A back-end gives connections, and searches in its own way.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any, Protocol

from services.store.crypto import Cipher
from services.store.knowledge import (
    QUEUED,
    RUNNING,
    Chunk,
    Collection,
    Document,
    Passage,
    Size,
    Source,
    no_document,
    no_source,
)

AT_ONCE = 500               # ids of one statement


class Rows(Protocol):
    """What a statement gives."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...


class Connection(Protocol):
    """A database within one transaction."""

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Rows: ...


class Codec:
    """Texts and bytes of one base as they are stored: sealed where there is a cipher."""

    def __init__(self, cipher: Cipher | None, owner: str, name: str) -> None:
        self.sealed = cipher is not None
        self._cipher, self._owner, self._context = cipher, owner, f"knowledge/{name}"

    def pack(self, text: str) -> str:
        return text if self._cipher is None else self._cipher.seal(self._owner, self._context, text.encode())

    def unpack(self, stored: str) -> str:
        """ValueError for what was changed or moved."""
        return stored if self._cipher is None else self._cipher.unseal(self._owner, self._context, stored).decode()

    def pack_bytes(self, data: bytes) -> bytes:
        return data if self._cipher is None else self._cipher.seal(self._owner, self._context, data).encode()

    def unpack_bytes(self, stored: bytes) -> bytes:
        return stored if self._cipher is None else self._cipher.unseal(self._owner, self._context, stored.decode())


class SqlCollection(Collection):
    """A base as tables `about`, `sources`, `documents` and `chunks`."""

    def __init__(self, owner: str, name: str, codec: Codec) -> None:
        self.owner, self.name, self._codec = owner, name, codec

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Connection]:
        """A connection that sees one state of the base for the time of the block."""

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[Connection]:
        """A connection for one transaction, which is durable when the block ends."""

    # ------------------------------------------------------------ the base

    def about(self) -> dict[str, Any]:
        with self._reading() as db:
            return self._about(db)

    def describe(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        with self._transaction() as db:
            self._write_about(db, change(self._locked_about(db)))

    def _about(self, db: Connection) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._codec.unpack(db.execute("SELECT body FROM about").fetchone()[0]))
        return found

    def _locked_about(self, db: Connection) -> dict[str, Any]:
        """It stays so until the transaction ends."""
        db.execute("UPDATE about SET deletions = deletions")
        return self._about(db)

    def _write_about(self, db: Connection, about: dict[str, Any]) -> None:
        db.execute("UPDATE about SET body = ?", (self._codec.pack(json.dumps(about)),))

    def size(self) -> Size:
        with self._reading() as db:
            return Size(*db.execute(
                "SELECT (SELECT count(*) FROM sources), count(*), coalesce(sum(chunks), 0), "
                "coalesce(sum(characters), 0), (SELECT count(*) FROM sources WHERE state IN (?, ?)) FROM documents",
                (QUEUED, RUNNING)).fetchone())

    # ------------------------------------------------------------ sources

    def add_source(self, source: Source, payload: bytes | None = None) -> None:
        stored = None if payload is None else self._codec.pack_bytes(payload)
        with self._transaction() as db:
            db.execute("INSERT INTO sources (id, state, body, payload) VALUES (?, ?, ?, ?)",
                       (source.id, source.state, self._source_body(source), stored))

    def update_source(self, source: Source, keep_payload: bool = True) -> bool:
        forget = "" if keep_payload else ", payload = NULL"
        with self._transaction() as db:
            done = db.execute(f"UPDATE sources SET state = ?, body = ?{forget} WHERE id = ?",
                              (source.state, self._source_body(source), source.id))
            return done.rowcount == 1

    def sources(self, id: str | None = None) -> list[Source]:
        where, values = ("", ()) if id is None else (" WHERE id = ?", (id,))
        with self._reading() as db:
            rows = db.execute(f"SELECT body FROM sources{where} ORDER BY number", values).fetchall()
        return [self._source(body) for body, in rows]

    def payload(self, source: str) -> bytes | None:
        with self._reading() as db:
            row = db.execute("SELECT payload FROM sources WHERE id = ?", (source,)).fetchone()
        return None if row is None or row[0] is None else self._codec.unpack_bytes(bytes(row[0]))

    def delete_source(self, source: str) -> None:
        with self._transaction() as db:
            if db.execute("DELETE FROM sources WHERE id = ?", (source,)).rowcount != 1:
                raise no_source(source)
            for id, in db.execute("SELECT id FROM documents WHERE source = ?", (source,)).fetchall():
                self._drop(db, id)

    def _source_body(self, source: Source) -> str:
        return self._codec.pack(json.dumps(asdict(source)))

    def _source(self, body: str) -> Source:
        values = json.loads(self._codec.unpack(body))
        return Source(**{**values, "problems": tuple(values["problems"])})

    # ------------------------------------------------------------ documents

    def put_document(self, document: Document) -> int:
        with self._transaction() as db:
            salt = self._codec.unpack(db.execute("SELECT salt FROM about").fetchone()[0])
            named, digest = _marked(salt, document.name), _marked(salt, f"{document.title}\0{document.text}")
            if not db.execute("SELECT 1 FROM sources WHERE id = ?", (document.source,)).fetchone():
                return 0
            before = db.execute("SELECT id, digest FROM documents WHERE source = ? AND named = ?",
                                (document.source, named)).fetchone()
            if before and before[1] == digest:
                return int(before[0])
            if before:
                self._drop(db, before[0])
            body = {"title": document.title, "name": document.name, "media_type": document.media_type,
                    "added": document.added, "sections": document.sections}
            found = db.execute(
                "INSERT INTO documents (source, named, digest, characters, chunks, indexed, body, text) "
                "VALUES (?, ?, ?, ?, 0, 0, ?, ?) RETURNING id",
                (document.source, named, digest, len(document.text), self._codec.pack(json.dumps(body)),
                 self._codec.pack(document.text))).fetchone()
            return int(found[0])

    def documents(self, source: str | None = None) -> list[Document]:
        where, values = ("", ()) if source is None else (" WHERE source = ?", (source,))
        with self._reading() as db:
            rows = db.execute(f"SELECT id, source, chunks, indexed, body FROM documents{where} ORDER BY id",
                              values).fetchall()
        return [self._document(row) for row in rows]

    def document(self, id: int) -> Document:
        with self._reading() as db:
            row = db.execute("SELECT id, source, chunks, indexed, body, text FROM documents WHERE id = ?",
                             (id,)).fetchone()
        if row is None:
            raise no_document(id)
        return replace(self._document(row[:5]), text=self._codec.unpack(row[5]))

    def _document(self, row: Sequence[Any]) -> Document:
        id, source, chunks, indexed, body = row
        values = json.loads(self._codec.unpack(body))
        values["sections"] = tuple((title, start, end) for title, start, end in values["sections"])
        return Document(id=id, source=source, chunks=chunks, indexed=bool(indexed), text="", **values)

    def delete_document(self, id: int) -> None:
        with self._transaction() as db:
            if not self._drop(db, id):
                raise no_document(id)

    def to_index(self, source: str) -> list[int]:
        with self._reading() as db:
            rows = db.execute("SELECT id FROM documents WHERE source = ? AND indexed = 0 ORDER BY id", (source,))
            return [id for id, in rows.fetchall()]

    def unindexed(self) -> set[str]:
        with self._reading() as db:
            return {id for id, in db.execute("SELECT DISTINCT source FROM documents WHERE indexed = 0").fetchall()}

    def _drop(self, db: Connection, document: int) -> bool:
        self._drop_chunks(db, document)
        return db.execute("DELETE FROM documents WHERE id = ?", (document,)).rowcount == 1

    def _drop_chunks(self, db: Connection, document: int | None) -> None:
        """Of all documents for None. `deletions` tells who holds a copy that it must be made anew."""
        where, values = ("", ()) if document is None else (" WHERE document = ?", (document,))
        if db.execute(f"DELETE FROM chunks{where}", values).rowcount:
            db.execute("UPDATE about SET deletions = deletions + 1")

    def put_chunks(self, document: int, chunks: Sequence[Chunk], expected: dict[str, Any] | None = None) -> bool:
        with self._transaction() as db:
            about = self._locked_about(db)
            if any(about.get(key) != value for key, value in (expected or {}).items()):
                return False
            self._drop_chunks(db, document)
            if db.execute("UPDATE documents SET chunks = ?, indexed = 1 WHERE id = ?",
                          (len(chunks), document)).rowcount != 1:
                return False
            for chunk in chunks:
                self._insert(db, document, chunk)
        return True

    @abstractmethod
    def _insert(self, db: Connection, document: int, chunk: Chunk) -> None: ...

    def forget_chunks(self, about: dict[str, Any]) -> None:
        with self._transaction() as db:
            self._locked_about(db)
            self._write_about(db, about)
            self._drop_chunks(db, None)
            db.execute("UPDATE documents SET chunks = 0, indexed = 0")
            having = {id for id, in db.execute("SELECT DISTINCT source FROM documents").fetchall()}
            for body, in db.execute("SELECT body FROM sources").fetchall():
                source = self._source(body)
                anew = source.without_chunks(source.id in having)
                db.execute("UPDATE sources SET state = ?, body = ? WHERE id = ?",
                           (anew.state, self._source_body(anew), anew.id))

    # ------------------------------------------------------------ search

    def passages(self, ids: Iterable[int]) -> list[Passage]:
        wanted = list(ids)
        with self._reading() as db:
            rows = [row for part in _parts(wanted) for row in db.execute(
                "SELECT c.id, c.document, c.number, c.start_at, c.title, c.text, d.body, d.source FROM chunks c "
                f"JOIN documents d ON d.id = c.document WHERE c.id IN ({','.join('?' * len(part))})", part).fetchall()]
        found = {row[0]: self._passage(row) for row in rows}
        return [found[id] for id in wanted if id in found]

    def _passage(self, row: Sequence[Any]) -> Passage:
        id, document, number, start, title, text, body, source = row
        about = json.loads(self._codec.unpack(body))
        return Passage(id=id, document=document, number=number, start=start, title=self._codec.unpack(title),
                       text=self._codec.unpack(text), document_title=about["title"], name=about["name"], source=source)


def _marked(salt: str, text: str) -> str:
    """What tells whether a text is the same, to nobody but who has the base's salt, which is sealed with it."""
    return hmac.new(salt.encode(), text.encode(), hashlib.sha256).hexdigest()


def _parts(ids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), AT_ONCE):
        yield ids[start:start + AT_ONCE]
