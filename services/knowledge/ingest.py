"""The background work of knowledge bases: sources are read into documents, documents are indexed, addresses refreshed.

All of it is in the store, so a restart goes on where the last process was: a source that is being read is read anew,
documents that are indexed already stay so. One process at most works on a base.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Protocol

from services.errors import NotFound, ParleyError, TooLarge, Unavailable
from services.knowledge.index import About, Embedder, Indexer, chunks
from services.store.knowledge import DONE, ERROR, QUEUED, RUNNING, Collection, Document, Library, Source

log = logging.getLogger("parley.knowledge")
EVERY = 15.0                # seconds between two looks for what is to be refreshed, or was left by others
TELL = 1.0                  # seconds between two looks whether the work on a source is to go on
FIRST_WAIT, LONGEST_WAIT = 15.0, 900.0      # seconds until what was not to be had is asked for again, doubled each time
MOST_TRIES = 100            # of a source, which take about a day
THREADS = 2                 # bases that one process works on at once
PROBLEMS = 20               # that are kept of one source
LEASED = 30.0               # seconds that a model is held without a break: others may wait for its place


@dataclass(frozen=True)
class Limits:
    documents: int = 10_000             # of a base
    characters: int = 256 << 20         # of all its documents
    pages: int = 500                    # of one crawl
    bases: int = 100                    # of a key
    pending: int = 1000                 # sources of a base that wait


@dataclass(frozen=True)
class Problem:
    """A part of a source that was left out. `cut`: nobody knows what else is in it, so what was read before stays."""

    name: str
    reason: str
    cut: bool = False


class Reader(Protocol):
    def read(self, source: Source, payload: bytes | None, owner: str,
             going: Callable[[], None]) -> Iterator[Document | Problem]:
        """The documents of a source of `owner`. Raises a ParleyError when there is none to be had; `going` is called
        now and then and may raise to end it."""


class Gone(Exception):
    """The source was deleted while it was worked on."""


class Stopped(Exception):
    """The server stops: what is left of a source is done after the next start."""


class Ingester:
    """Works on the sources of all bases, in threads of its own from `start` on, until the server is `stopping`. Any
    thread may ask."""

    def __init__(self, library: Library, indexer: Indexer, reader: Reader, limits: Limits,
                 now: Callable[[], float] = time.time, stopping: Callable[[], bool] = lambda: False) -> None:
        self._library, self._indexer, self._reader, self._limits, self._now = library, indexer, reader, limits, now
        self._stopping = stopping
        self._lock = threading.Lock()
        self._news: list[threading.Event] = []      # of each thread; under _lock

    def start(self) -> None:
        """Look now for what there is to do. A base that takes long does not hold up the others."""
        with self._lock:
            while len(self._news) < THREADS:
                self._news.append(threading.Event())
                threading.Thread(target=self._loop, args=(self._news[-1],), name="knowledge", daemon=True).start()
            for news in self._news:
                news.set()

    def _loop(self, news: threading.Event) -> None:
        while True:
            news.wait(EVERY)
            news.clear()
            try:
                self.round()
            except ParleyError as error:
                log.warning("knowledge bases cannot be worked on: %s", error.message)
            except Exception:
                log.exception("knowledge bases cannot be worked on")

    def round(self) -> None:
        """Do all that is to be done now."""
        for owner, name in self._library.names():
            try:
                self.work(self._library.open(owner, name))
            except NotFound:
                continue            # deleted meanwhile
            except ParleyError as error:
                log.warning("knowledge base %s of %s: %s", name, owner, error.message)

    def work(self, collection: Collection, only: str | None = None) -> None:
        """Do what is to be done in one base, unless somebody does. `only`: a source, the others are left."""
        if not self._due(collection, only):
            return
        with collection.held() as mine:
            tried: list[Source] = []            # what could not be done now waits for the next round
            while mine and (due := [source for source in self._due(collection, only) if source not in tried]):
                for source in due:
                    if self._stopping():
                        return
                    self._take(collection, source)
                tried = self._due(collection, only)

    def _due(self, collection: Collection, only: str | None) -> list[Source]:
        """Sources that have something to be done. A running one counts: whoever holds the base finds its own done."""
        every = About.of(collection.about()).refresh_seconds
        unindexed, now = collection.unindexed(), self._now()
        found = []
        for source in collection.sources(only):
            old = every is not None and source.kind in ("url", "crawl") and source.checked + every <= now
            if source.state == RUNNING or (source.state == QUEUED and source.next_try <= now):
                found.append(source)
            elif source.state == QUEUED:
                continue
            elif old:
                found.append(replace(source, task="read"))
            elif source.state == DONE and source.id in unindexed:       # another model was chosen meanwhile
                found.append(replace(source, task="index"))
        return found

    def _take(self, collection: Collection, source: Source) -> None:
        """Whatever happens, the source tells of it."""
        try:
            source = self._tell(collection, replace(source, state=RUNNING, error=None))
            if source.task == "read":
                source = self._read(collection, source)
            self._index(collection, source)
        except (Gone, Stopped):
            return
        except Unavailable as error:        # a model that is loading, a runner that died, a server that stops
            self._end(collection, self._later(source, error.message))
        except NotFound as error:
            if error.code == "knowledge_not_found":
                raise
            self._end(collection, replace(source, state=ERROR, error=error.message))
        except ParleyError as error:
            self._end(collection, replace(source, state=ERROR, error=error.message))
        except Exception:
            log.exception("source %s of knowledge base %s failed", source.id, collection.name)
            self._end(collection, replace(source, state=ERROR,
                                          error=f"internal error; the server's log says more under {source.id}"))
        else:
            self._end(collection, replace(source, state=DONE, task=""))

    def _later(self, source: Source, why: str) -> Source:
        """`source` after one more try in vain: it waits longer each time, and not for ever."""
        tries = source.tries + 1
        if tries >= MOST_TRIES:
            return replace(source, state=ERROR, error=f"given up after {tries} tries: {why}")
        wait = min(FIRST_WAIT * 2 ** min(tries - 1, 20), LONGEST_WAIT)
        return replace(source, state=QUEUED, error=f"waits, and is tried again: {why}", tries=tries,
                       next_try=self._now() + wait)

    def _tell(self, collection: Collection, source: Source, keep_payload: bool = True) -> Source:
        source = replace(source, updated=stamp(self._now()))
        if not collection.update_source(source, keep_payload):
            raise Gone
        return source

    def _teller(self, collection: Collection, source: Source) -> Callable[[], None]:
        """Tells about every second that the work goes on, and ends it when the source was deleted or the server stops.
        """
        told = time.monotonic()

        def tell() -> None:
            nonlocal told
            if time.monotonic() - told >= TELL:
                if self._stopping():
                    raise Stopped
                self._tell(collection, source)
                told = time.monotonic()
        return tell

    def _end(self, collection: Collection, source: Source) -> None:
        done = source.state in (DONE, ERROR)
        if done:
            source = replace(source, checked=self._now(), tries=0, next_try=0.0)
        try:
            self._tell(collection, source, keep_payload=not done)
        except Gone:
            log.info("source %s of knowledge base %s was deleted while it was read", source.id, collection.name)

    def _read(self, collection: Collection, source: Source) -> Source:
        """Its documents into the store. Those of before that it does not have any more go."""
        problems: list[Problem] = []
        seen: set[str] = set()
        before = {document.name: document.id for document in collection.documents(source.id)}

        going = self._teller(collection, source)
        for found in self._reader.read(source, collection.payload(source.id), collection.owner, going):
            if isinstance(found, Problem):
                problems.append(found)
                continue
            seen.add(found.name)
            self._check_room(collection, found, before.get(found.name))
            if not collection.put_document(replace(found, source=source.id, added=stamp(self._now()))):
                raise Gone
        kept = seen | {problem.name for problem in problems}
        whole = not any(problem.cut for problem in problems)
        for old in collection.documents(source.id):
            if whole and old.name not in kept:
                with _unless_deleted():
                    collection.delete_document(old.id)
        return self._tell(collection, replace(source, task="index", problems=_told(problems)), keep_payload=False)

    def _check_room(self, collection: Collection, document: Document, replaced: int | None) -> None:
        """`replaced`: the id of the document in whose place it comes."""
        size, most = collection.size(), self._limits
        characters = size.characters + len(document.text)
        if replaced is None and size.documents >= most.documents:
            raise TooLarge(f"the base has {size.documents} documents, which is as many as it may "
                           "(KNOWLEDGE_MAX_DOCUMENTS): delete some, or begin another base")
        if replaced is not None and characters > most.characters:
            with _unless_deleted():
                characters -= len(collection.document(replaced).text)
        if characters > most.characters:
            raise TooLarge(f"{document.name[:200]} has {len(document.text)} characters; with it the base would have "
                           f"more than the {most.characters} that it may (KNOWLEDGE_MAX_BYTES)")

    def _index(self, collection: Collection, source: Source) -> None:
        ids = collection.to_index(source.id)
        if not ids:
            return
        about = About.of(collection.about())

        beat = self._teller(collection, source)
        while ids:
            with self._indexer.embedder(collection.name, about, collection.owner, beat) as embedder:
                if not about.dimensions:
                    collection.describe(lambda now: {**now, "dimensions": embedder.dimensions}
                                        if now["fingerprint"] == about.fingerprint else now)
                ids = _index_some(collection, ids, about, embedder, beat)


def _index_some(collection: Collection, ids: list[int], about: About, embedder: Embedder,
                beat: Callable[[], None]) -> list[int]:
    """Documents for a while; those that are left."""
    until = time.monotonic() + LEASED
    for done, id in enumerate(ids, 1):
        beat()
        with _unless_deleted():
            made = chunks(collection.document(id), embedder, about.chunk_tokens)
            collection.put_chunks(id, made, {"fingerprint": about.fingerprint, "chunk_tokens": about.chunk_tokens})
        if time.monotonic() >= until:
            return ids[done:]
    return []


@contextmanager
def _unless_deleted() -> Iterator[None]:
    """Around what is done with one document, which somebody may delete meanwhile."""
    try:
        yield
    except NotFound as error:
        if error.code != "document_not_found":
            raise


def _told(problems: list[Problem]) -> tuple[str, ...]:
    more = len(problems) - PROBLEMS
    told = [f"{problem.name[:200]}: {problem.reason}" for problem in problems[:PROBLEMS]]
    return (*told, *([f"and {more} more"] if more > 0 else []))


def stamp(seconds: float) -> str:
    """Unix time in ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
