"""Sources to documents: texts, files, zips, addresses, and pages that lead to each other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from services.errors import BadRequest, Forbidden, ParleyError, TooManyRequests, Unavailable, Unprocessable
from services.knowledge import documents, urls
from services.knowledge.archives import members
from services.knowledge.documents import clean, one_line
from services.knowledge.extract import extract
from services.knowledge.fetch import Fetcher
from services.knowledge.ingest import Problem
from services.store.knowledge import Document, Source

DEPTH, PAGES = 2, 50            # of a crawl that does not say
PATIENCE = 20                   # times that a crawl waits for its owner's rate
LONGEST_WAIT = 60.0             # seconds of each
LONGEST_DELAY = 30.0            # seconds between two pages that a host's robots.txt may want
MOST_DELAYS = 1800.0            # seconds of all these of a crawl: meanwhile others' sources wait for its thread


class SourceReader:
    """Any thread may ask. `sleep` is for tests."""

    def __init__(self, fetcher: Fetcher, sleep: Callable[[float], None] = time.sleep) -> None:
        self._fetcher, self._sleep = fetcher, sleep

    def read(self, source: Source, payload: bytes | None, owner: str,
             going: Callable[[], None]) -> Iterator[Document | Problem]:
        """The documents of a source of `owner`. Raises a ParleyError when there is none to be had; `going` is called
        now and then and may raise to end it."""
        if source.kind == "crawl":
            return self._crawl(source, owner, going)
        if source.kind == "url":
            return iter([_stored(self._get(source.name, owner, going))])
        assert payload is not None, "what was sent is kept until it was read"
        if source.kind == "zip":
            return _zip(payload, going)
        if source.kind == "file":
            return iter([_stored(extract(payload, str(source.options.get("media_type", "")), source.name))])
        assert source.kind == "text"
        return iter([Document(title=source.name, name=source.name, text=clean(payload.decode()),
                              media_type="text/plain")])

    def _crawl(self, source: Source, owner: str, going: Callable[[], None]) -> Iterator[Document | Problem]:
        """The page of the source, then those of the same host that pages lead to, the nearest first."""
        start = urls.parse(source.name)
        most, depth = int(source.options.get("max_pages", PAGES)), int(source.options.get("max_depth", DEPTH))
        seen, waiting = {str(start)}, deque([(str(start), 0)])
        known, delays = set[str](), 0.0
        for number in range(most):
            if not waiting:
                return
            url, level = waiting.popleft()
            try:
                if number:
                    delay = self._fetcher.delay(url)
                    delays += delay
                    if delay > LONGEST_DELAY or delays > MOST_DELAYS:
                        yield _too_slow(url, delay, len(waiting) + 1)
                        return
                    self._wait(delay, going)
                page = self._get(url, owner, going)
            except (Unavailable, Forbidden):
                raise
            except ParleyError as error:
                if number == 0:
                    raise
                yield Problem(url, error.message)
                continue
            if page.source not in known and _host(page.source) == start.host:     # else: it was led elsewhere
                known.add(page.source)
                yield _stored(page)
                for link in page.links if level < depth else ():
                    if len(seen) < most and (found := _same_host(link.url, start.host)) and found not in seen:
                        seen.add(found)
                        waiting.append((found, level + 1))

    def _get(self, url: str, owner: str, going: Callable[[], None]) -> documents.Document:
        """The document at `url`; waits while its owner has asked for too many."""
        for last in (*[False] * PATIENCE, True):
            going()
            try:
                return self._fetcher.read(url, owner=owner, fresh=True)
            except TooManyRequests as error:
                if last:
                    raise
                self._wait(min(error.retry_after or 1.0, LONGEST_WAIT), going)
        raise AssertionError("the last time was raised")

    def _wait(self, seconds: float, going: Callable[[], None]) -> None:
        """In parts of a second at most, so that what ends the work is noticed."""
        while seconds > 0:
            going()
            self._sleep(min(seconds, 1.0))
            seconds -= 1.0


def kind_of(name: str, media_type: str) -> str:
    """`zip` or `file`: Office files are zips too, but one document each."""
    is_zip = media_type in ("application/zip", "application/x-zip-compressed") or name.lower().endswith(".zip")
    return "zip" if is_zip else "file"


def _too_slow(url: str, delay: float, left: int) -> Problem:
    origin = urls.parse(url).origin
    return Problem(origin, f"{origin}/robots.txt asks for {delay:g} seconds between two pages, and a crawl waits for "
                           f"{LONGEST_DELAY:g} at most, and {MOST_DELAYS:g} in all: {left} pages that were found were "
                           "not read; add those that matter as url", cut=True)


def _zip(payload: bytes, going: Callable[[], None]) -> Iterator[Document | Problem]:
    files = list(members(payload))               # all or none, where the archive is damaged
    if not files:
        raise Unprocessable("the archive holds no file", code="unreadable_document")
    for member in files:
        going()
        try:
            yield _stored(extract(member.data, "", member.name))
        except Unavailable:
            raise
        except ParleyError as error:
            yield Problem(member.name, error.message)


def _stored(found: documents.Document) -> Document:
    return Document(title=one_line(found.title) or PurePosixPath(found.source).name or found.source, name=found.source,
                    text=found.text, media_type=found.media_type,
                    sections=tuple((one_line(part.title), part.start, part.end) for part in found.sections))


def _host(url: str) -> str:
    return urls.parse(url).host


def _same_host(url: str, host: str) -> str | None:
    """A link as it is asked for; None for one to elsewhere, or that cannot be fetched."""
    try:
        found = urls.parse(url)
    except BadRequest:
        return None
    return str(found) if found.host == host else None
