"""Where can be looked before answering: knowledge bases, feeds, and the wikis that the operator names (WIKIS)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from services.errors import NotFound
from services.knowledge.bases import Bases
from services.knowledge.documents import Document, one_line
from services.knowledge.feeds import Feed, Feeds
from services.knowledge.fetch import Fetcher, Trip
from services.knowledge.references import Reference
from services.knowledge.search import words_of

MOST_FOUND = 6              # that a place brings
SHOWN_TITLES = 12           # of a base's documents, by which a model knows what is in it
MOST_OFFERED = 16           # bases that a model may choose from where none are named: its key's own before others'


@dataclass(frozen=True)
class Found:
    """What a place has. `read` fetches its whole text, where the reference has only the beginning of it."""

    reference: Reference
    read: Callable[[], Document] | None = None


@dataclass(frozen=True)
class Place:
    """Where can be looked. `find` raises ParleyErrors."""

    name: str
    about: str                                      # for the model: what is there
    find: Callable[[str], Sequence[Found]]
    host: str = ""                                  # by which it may be named, too

    def is_called(self, name: str) -> bool:
        """Whether `name` is its name, or the domain that it is at."""
        return self.name.lower() == name.lower() or self.host == name.lower() or self.host.endswith(f".{name.lower()}")


class Places:
    """All of them. Any thread may ask. `wikis`: addresses of MediaWikis' REST interfaces (`…/rest.php`)."""

    def __init__(self, bases: Bases, feeds: Feeds, fetcher: Fetcher, wikis: Sequence[str]) -> None:
        self._bases, self._feeds, self._fetcher, self._wikis = bases, feeds, fetcher, wikis

    def of(self, owner: str, refs: Sequence[str] = (), names: Sequence[str] = ()) -> list[Place]:
        """Where the key `owner` may look: in the bases `refs` (none: all that it may read), in feeds and wikis; only in
        those called `names`, if there are any. `NotFound` (`place_not_found`) naming those there are."""
        there = [*self._of_bases(owner, refs or self._readable(owner)[:None if names else MOST_OFFERED]),
                 *self._beyond(owner)]
        if not names:
            return there
        for name in names:
            if not any(place.is_called(name) for place in there):
                known = ", ".join(place.name for place in there) or "none"
                raise NotFound(f"there is no place {name[:80]!r} to look in; there are: {known}",
                               code="place_not_found", param="search")
        return [place for place in there if any(place.is_called(name) for name in names)]

    def _readable(self, owner: str) -> list[str]:
        return sorted((base["name"] for base in self._bases.all(owner)), key=lambda ref: "@" in ref)

    def _of_bases(self, owner: str, refs: Sequence[str]) -> Iterator[Place]:
        for ref in dict.fromkeys(refs):
            documents = self._bases.documents(owner, ref)[:SHOWN_TITLES]
            if documents:
                titles = "; ".join(one_line(document["title"], 60) for document in documents)
                yield base(self._bases, owner, ref, f"documents such as {titles}")

    def _beyond(self, owner: str) -> Iterator[Place]:
        if self._fetcher.on:
            trip = Trip()
            yield from (feed(one, self._fetcher, owner, trip) for one in self._feeds.current())
            yield from (wiki(url, self._fetcher, owner, trip) for url in self._wikis)


def base(bases: Bases, owner: str, ref: str, about: str) -> Place:
    """A knowledge base; `about` tells the model what is in it."""
    def find(query: str) -> list[Found]:
        return [Found(Reference.of_hit(hit)) for hit in bases.search(owner, [ref], query, MOST_FOUND)]
    return Place(ref, about, find)


def feed(known: Feed, fetcher: Fetcher, owner: str, trip: Trip) -> Place:
    """A feed: the entries that have most of the words that are looked for, else the newest."""
    def find(query: str) -> list[Found]:
        document = fetcher.read(known.url, owner=owner, trip=trip)
        links = {link.text: link.url for link in document.links}
        words = [word.casefold() for word in words_of(query)]
        entries = [(one_line(section.title), document.part(section)) for section in document.sections]
        entries.sort(key=lambda entry: -sum(word in " ".join(entry).casefold() for word in words))
        return [_found(title, text, links.get(title, known.url)) for title, text in entries[:MOST_FOUND]]
    about = known.introduction.rstrip(" :") or " ".join(known.when[0])
    return Place(known.name, f"a feed. {about}", find, urlsplit(known.url).hostname or "")


def wiki(api: str, fetcher: Fetcher, owner: str, trip: Trip) -> Place:
    """A MediaWiki, such as Wikipedia, by its REST interface (mediawiki.org/wiki/API:REST_API)."""
    host = urlsplit(api).hostname or ""

    def find(query: str) -> list[Found]:
        page = fetcher.get(f"{api}/v1/search/page?limit={MOST_FOUND}&q={quote(query)}", owner=owner, trip=trip,
                           polite=False)
        return [_article(*entry) for entry in _entries(page.data)]

    def _article(key: str, title: str, text: str) -> Found:
        read = f"{api}/v1/page/{quote(key, safe='')}/html"
        shown = f"{api.removesuffix('rest.php')}index.php?title={quote(key)}"
        return Found(_found(title, text, shown).reference,
                     lambda: fetcher.read(read, owner=owner, trip=trip, polite=False))
    return Place(host, "a wiki: an encyclopedia of people, places, history, science" if host.endswith("wikipedia.org")
                 else "a wiki", find, host)


def _found(title: str, text: str, url: str) -> Found:
    return Found(Reference.of_document(Document(title, text, url, "text/plain"), url))


def _entries(data: bytes) -> list[tuple[str, str, str]]:
    """(key, title, beginning) of each page that the search names; nothing of an answer in another shape."""
    try:
        return [(str(page["key"]), str(page.get("title") or page["key"]),
                 f"{page.get('description') or ''}. {page.get('excerpt') or ''}") for page in json.loads(data)["pages"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
