"""Knowledge bases as their users see them: whose they are, who may read them, what goes in and what is found.

A base belongs to a key. Others name it `<name>@<key id>`, or by its name where they have none of that name themselves.
Who may not read a base is told the same as if it were not there.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from auth.records import MASTER_ID
from services.errors import BadRequest, Conflict, Forbidden, Gone, NotFound, TooManyRequests
from services.knowledge.index import About, Indexer, reindexed
from services.knowledge.ingest import Ingester, Limits, Reader, stamp
from services.knowledge.search import Hit, Searched, Weights, hybrid
from services.store.base import is_owner
from services.store.knowledge import (
    DONE,
    ERROR,
    QUEUED,
    Collection,
    Document,
    Library,
    Source,
    check_names,
    no_source,
    not_found,
)

log = logging.getLogger("parley.knowledge")
CHUNK_TOKENS = 256              # of a chunk, unless its maker or the model says otherwise
SMALL = 8000                    # characters of a text that is indexed while its sender waits
MOST_BASES = 16                 # searched at once


class Bases:
    """All knowledge bases. Any thread may ask; `owner` is the id of the key that does. Background work ends when the
    server is `stopping`."""

    def __init__(self, library: Library, indexer: Indexer, reader: Reader, limits: Limits = Limits(),
                 now: Callable[[], float] = time.time, stopping: Callable[[], bool] = lambda: False) -> None:
        self._library, self._indexer, self._limits, self._now = library, indexer, limits, now
        self._ingester = Ingester(library, indexer, reader, limits, now, stopping)

    def start(self) -> None:
        """Go on with what a server before this one began."""
        self._ingester.start()

    # ------------------------------------------------------------ bases

    def create(self, owner: str, name: str, *, profile: str | None = None, allowed: Sequence[str] | None = None,
               chunk_tokens: int | None = None, shared: bool | list[str] = False,
               refresh_seconds: int | None = None) -> dict[str, Any]:
        """A new base. `allowed`: profiles that its maker may use. Raises `Conflict`, `BadRequest`, `TooManyRequests`,
        and what choosing a profile does."""
        check_names(owner, name)
        _check_shared(shared)
        if sum(one == owner for one, _ in self._library.names()) >= self._limits.bases:
            raise TooManyRequests(f"this key has {self._limits.bases} knowledge bases, which is as many as it may: "
                                  "delete one first", code="too_many_bases")
        model, known = self._indexer.choose(profile, allowed)
        most = model.spec.n_ctx
        if chunk_tokens is not None and chunk_tokens > most:
            raise BadRequest(f"chunk_tokens is {chunk_tokens}, but the profile {model.profile!r} reads texts of {most} "
                             "tokens at most", param="chunk_tokens")
        about = About(created=stamp(self._now()), profile="", model="", fingerprint="", shared=shared,
                      chunk_tokens=CHUNK_TOKENS, refresh_seconds=refresh_seconds)
        made = self._library.create(owner, name, asdict(reindexed(about, model, known, chunk_tokens)))
        return self._shown(owner, made)

    def all(self, owner: str) -> list[dict[str, Any]]:
        """The bases that `owner` may read: all of them for the master."""
        return [self._shown(owner, collection) for collection in self._readable(owner)]

    def get(self, owner: str, ref: str) -> dict[str, Any]:
        return self._shown(owner, self.find(owner, ref))

    def change(self, owner: str, ref: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Replace `shared`, `refresh_seconds` or `system`."""
        _check_shared(changes.get("shared", False))
        collection = self._own(owner, ref)
        collection.describe(lambda about: asdict(replace(About.of(about), **changes)))
        self._ingester.start()
        return self._shown(owner, collection)

    def delete(self, owner: str, ref: str) -> None:
        name, _, of = ref.partition("@")
        if owner in (of or owner, MASTER_ID) and (of or owner, name) in self._library.names():     # also a damaged one
            return self._library.delete(of or owner, name)
        collection = self._own(owner, ref)
        return self._library.delete(collection.owner, collection.name)

    def find(self, owner: str, ref: str) -> Collection:
        """The base that `ref` means for `owner`, who may read it. `NotFound`; `Conflict` when it means several."""
        name, _, of = ref.partition("@")
        found = self._readable(owner, name, of)
        if not of:
            found = [one for one in found if one.owner == owner] or found
        if len(found) > 1:
            refs = ", ".join(_ref(owner, one) for one in found)
            raise Conflict(f"{name} means several knowledge bases: name one of {refs}", code="ambiguous",
                           param="knowledge")
        if not found:
            raise not_found(ref)
        return found[0]

    def _readable(self, owner: str, name: str | None = None, of: str = "") -> list[Collection]:
        """Of that name, of the key `of`."""
        found = []
        for one, called in self._library.names():
            if name in (None, called) and of in ("", one):
                try:
                    collection = self._library.open(one, called)
                    shared = _shares(About.of(collection.about()), owner)
                    if shared or owner in (one, MASTER_ID):
                        found.append(collection)
                except NotFound:
                    continue        # deleted meanwhile
                except Gone as error:       # damaged: the trouble of who asks for it, and of nobody else
                    if name and (one == owner or (of and owner == MASTER_ID)):
                        raise
                    log.error("knowledge base %s of %s: %s", called, one, error.message)
        return found

    def _own(self, owner: str, ref: str) -> Collection:
        """The base, to be changed."""
        collection = self.find(owner, ref)
        if owner not in (collection.owner, MASTER_ID):
            raise Forbidden(f"the knowledge base {ref} is shared with this key for reading; its owner may change it",
                            code="not_owner")
        return collection

    def _shown(self, owner: str, collection: Collection) -> dict[str, Any]:
        about, size = About.of(collection.about()), collection.size()
        mine = owner in (collection.owner, MASTER_ID)
        return {"name": _ref(owner, collection), "owner": collection.owner, "created": about.created,
                "profile": about.profile, "model": about.model, "dimensions": about.dimensions or None,
                "chunk_tokens": about.chunk_tokens, "refresh_seconds": about.refresh_seconds,
                "shared": about.shared if mine or about.shared is True else [owner], **asdict(size),
                **({"system": about.system} if mine and about.system else {})}

    # ------------------------------------------------------------ what is in them

    def add(self, owner: str, ref: str, kind: str, name: str, payload: bytes | None = None,
            **options: Any) -> dict[str, Any]:
        """A new source. A short text is indexed when this returns, else it is `queued`: see its state.

        `kind` and what goes with it: `text` and `file` (`payload`, option `media_type`), `zip` (`payload`), `url`,
        `crawl` (options `max_depth`, `max_pages`).
        """
        collection = self._own(owner, ref)
        if collection.size().pending >= self._limits.pending:
            raise TooManyRequests(f"{self._limits.pending} sources of this base wait to be indexed: wait for some of "
                                  "them", code="too_many_sources", retry_after=30)
        if options.get("max_pages", 0) > self._limits.pages:
            raise BadRequest(f"max_pages: a crawl takes {self._limits.pages} pages at most (KNOWLEDGE_MAX_PAGES)",
                             param="max_pages")
        source = Source(id=uuid.uuid4().hex, kind=kind, name=name, options=options, added=stamp(self._now()))
        collection.add_source(source, payload)
        if kind == "text" and len(payload or b"") <= SMALL:
            self._ingester.work(collection, source.id)
        self._ingester.start()
        return self.source(owner, ref, source.id)

    def sources(self, owner: str, ref: str) -> list[dict[str, Any]]:
        collection, documents = self.find(owner, ref), defaultdict[str, list[Document]](list)
        for document in collection.documents():
            documents[document.source].append(document)
        return [_source_shown(source, documents[source.id]) for source in collection.sources()]

    def source(self, owner: str, ref: str, id: str) -> dict[str, Any]:
        collection = self.find(owner, ref)
        for source in collection.sources(id):
            return _source_shown(source, collection.documents(id))
        raise no_source(id)

    def delete_source(self, owner: str, ref: str, id: str) -> None:
        self._own(owner, ref).delete_source(id)

    def documents(self, owner: str, ref: str) -> list[dict[str, Any]]:
        return [_document_shown(document) for document in self.find(owner, ref).documents()]

    def document(self, owner: str, ref: str, id: int) -> dict[str, Any]:
        """With its text."""
        found = self.find(owner, ref).document(id)
        return {**_document_shown(found), "text": found.text}

    def delete_document(self, owner: str, ref: str, id: int) -> None:
        self._own(owner, ref).delete_document(id)

    def refresh(self, owner: str, ref: str) -> list[dict[str, Any]]:
        """Read all addresses of a base again, and try at once whatever waits or could not be indexed."""
        collection = self._own(owner, ref)
        for source in collection.sources():
            if again := _again(source):
                collection.update_source(again)
        self._ingester.start()
        return self.sources(owner, ref)

    def reindex(self, owner: str, ref: str, *, profile: str | None = None, allowed: Sequence[str] | None = None,
                chunk_tokens: int | None = None) -> dict[str, Any]:
        """Make all chunks and vectors anew from the stored texts, with the model that `profile` (None: the one so far)
        has now."""
        collection = self._own(owner, ref)
        about = About.of(collection.about())
        model, known = self._indexer.choose(profile or about.profile, allowed)
        collection.forget_chunks(asdict(reindexed(about, model, known, chunk_tokens)))
        self._ingester.start()
        return self._shown(owner, collection)

    # ------------------------------------------------------------ what is found

    def search(self, owner: str, refs: Sequence[str], query: str, top_k: int = 5, weights: Weights = Weights(),
               beat: Callable[[], None] = lambda: None) -> list[Hit]:
        """The best passages of some bases. `Conflict` where a base's model is not the one that it was made with."""
        named: dict[tuple[str, str], Collection] = {}
        for ref in dict.fromkeys(refs):
            collection = self.find(owner, ref)
            named[collection.owner, collection.name] = collection
        if len(named) > MOST_BASES:
            raise BadRequest(f"knowledge names {len(named)} bases; {MOST_BASES} at most are searched at once",
                             param="knowledge")
        vectors: dict[str, bytes] = {}          # by the model that made them
        searched = [self._searched(owner, one, query, weights, vectors, beat) for one in named.values()]
        return hybrid(searched, query, top_k, weights)

    def _searched(self, owner: str, collection: Collection, query: str, weights: Weights, vectors: dict[str, bytes],
                  beat: Callable[[], None]) -> Searched:
        ref, about = _ref(owner, collection), About.of(collection.about())
        if not weights.vector or not about.dimensions:
            return Searched(ref, collection, None)
        with ExitStack() as stack:
            if about.fingerprint not in vectors:
                embedder = stack.enter_context(self._indexer.embedder(ref, about, owner, beat))
                vectors[about.fingerprint] = embedder.query(query)
        return Searched(ref, collection, vectors[about.fingerprint])


def _ref(owner: str, collection: Collection) -> str:
    return collection.name if collection.owner == owner else f"{collection.name}@{collection.owner}"


def _shares(about: About, owner: str) -> bool:
    return about.shared if isinstance(about.shared, bool) else owner in about.shared


def _check_shared(shared: bool | list[str]) -> None:
    for id in shared if isinstance(shared, list) else []:
        if not is_owner(id):
            raise BadRequest(f"shared: {id[:80]!r} is no id of a key; GET /auth tells a key its id", param="shared")


def _again(source: Source) -> Source | None:
    """`source` with what a refresh wants of it, if anything."""
    ended = source.state in (DONE, ERROR)
    if source.state == QUEUED and source.next_try:
        task = source.task
    elif ended and source.kind in ("url", "crawl"):
        task = "read"
    elif source.state == ERROR and source.task == "index":
        task = "index"
    else:
        return None
    return replace(source, state=QUEUED, task=task, error=None, tries=0, next_try=0.0)


def _source_shown(source: Source, documents: Sequence[Document]) -> dict[str, Any]:
    """With what is told of its `documents`."""
    return {"id": source.id, "kind": source.kind, "name": source.name, "options": source.options,
            "state": source.state, "error": source.error,
            "next_try": stamp(source.next_try) if source.next_try else None,
            "problems": list(source.problems), "added": source.added, "updated": source.updated or source.added,
            "documents": len(documents), "indexed": sum(document.indexed for document in documents),
            "chunks": sum(document.chunks for document in documents)}


def _document_shown(document: Document) -> dict[str, Any]:
    return {"id": document.id, "source": document.source, "title": document.title, "name": document.name,
            "media_type": document.media_type, "chunks": document.chunks, "indexed": document.indexed,
            "added": document.added}
