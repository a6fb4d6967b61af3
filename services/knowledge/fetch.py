"""The one guarded fetcher: the only way by which a URL that a client, a page or a feed names is asked for (rows R)."""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpcore

from services.errors import BadRequest, FetchFailed, Forbidden, TooManyRequests, Unavailable, Unprocessable
from services.knowledge import connection, guard, kinds, robots, urls
from services.knowledge.documents import Document
from services.knowledge.extract import extract
from services.knowledge.recent import Rate, Recent
from services.knowledge.urls import Url
from services.settings import Settings

MAX_PAGES = 16              # of one request
PER_MINUTE = 120            # pages that a key may have fetched, those from the cache not counted
AT_ONCE = 16                # fetches of this process
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 3
AGE = 300.0                 # seconds that a page is kept
KEPT, KEPT_BYTES = 64, 32 << 20
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)


@dataclass(frozen=True)
class Page:
    """What was fetched. `url`: where it was found in the end. `truncated`: it is longer than FETCH_MAX_BYTES."""

    url: str
    media_type: str         # as the server says, lower case, without parameters; "" when it does not
    charset: str | None
    data: bytes = field(repr=False)
    truncated: bool = False


@dataclass
class Trip:
    """What one request of a client may fetch: give the same one to each `get` that is made for it."""

    left: int = MAX_PAGES

    def step(self) -> None:
        if self.left <= 0:
            raise TooManyRequests("this request names more pages than are fetched for one", code="too_many_urls")
        self.left -= 1


class Fetcher:
    """Any thread may ask. Raises `BadRequest` (`bad_url`, `url_blocked`), `FetchFailed` (`fetch_failed`, 502),
    `UnsupportedMedia`, `TooManyRequests`, `Unavailable`; `Forbidden` (`fetch_off`) with FETCH=off.

    `resolve`, `dial` and `context` are for tests: how names get addresses, how addresses get sockets, who is trusted.
    """

    def __init__(self, settings: Settings, *, resolve: guard.Resolve = guard.resolve,
                 dial: connection.Dial = connection.dial, context: ssl.SSLContext | None = None) -> None:
        self._settings = settings
        self._guard = guard.Guard(settings, resolve)
        self._dial = dial
        self._context = context
        self._robots = robots.Robots(self._robots_txt)
        self._pages: Recent[Page] = Recent(AGE, KEPT, KEPT_BYTES, lambda page: len(page.data))
        self._rate = Rate(PER_MINUTE)
        self._seats = threading.BoundedSemaphore(AT_ONCE)
        self._lock = threading.Lock()               # guards what follows
        self._going: dict[str, Future[Page]] = {}   # `_name` -> the fetch that others wait for

    @property
    def on(self) -> bool:
        """Whether anything is fetched at all."""
        return self._settings.fetch

    def get(self, url: str, *, owner: str = "", trip: Trip | None = None, fresh: bool = False,
            polite: bool = True) -> Page:
        """What is at `url`, from the cache if it was there a moment ago unless `fresh`. `owner`: whose rate it counts
        on (a key's id). `polite`: only with the leave of robots.txt, which is not about interfaces for programs."""
        self._check_on()
        asked = urls.parse(url)
        if trip is not None:
            trip.step()
        page = None if fresh else self._pages.get(_name(asked, polite))
        return page or self._shared(asked, owner, polite)

    def read(self, url: str, *, owner: str = "", trip: Trip | None = None, fresh: bool = False,
             polite: bool = True) -> Document:
        """`get`, then `extract`."""
        page = self.get(url, owner=owner, trip=trip, fresh=fresh, polite=polite)
        try:
            return extract(page.data, page.media_type, page.url, page.charset, cut=page.truncated)
        except Unprocessable as error:
            raise FetchFailed(f"{page.url} cannot be read: {error.message}", param="url") from None

    def post(self, url: str, posted: connection.Posted) -> int:
        """Send something to `url`, with the same care; the HTTP status. Redirects are not followed."""
        asked = self.target(url)
        until = time.monotonic() + self._settings.fetch_timeout
        addresses = self._guard.addresses(asked, until)
        with connection.asked(asked, addresses, until, self._dial, self._context, posted) as response:
            return int(response.status)

    def target(self, url: str) -> Url:
        """What `get` would fetch, and `post` would send to, as far as that can be told and refused beforehand."""
        self._check_on()
        asked = urls.parse(url)
        self._guard.check(asked)
        return asked

    def _check_on(self) -> None:
        if not self.on:
            raise Forbidden("this server asks no other servers (FETCH=off)", code="fetch_off")

    def delay(self, url: str) -> float:
        """Seconds that the host of `url` wants between two requests by its robots.txt; 0 when it does not say."""
        asked = urls.parse(url)
        return self._robots.delay(asked, time.monotonic() + self._settings.fetch_timeout)

    def _shared(self, url: Url, owner: str, polite: bool) -> Page:
        """Who asks for what is being fetched already waits for that (row R14)."""
        name = _name(url, polite)
        with self._lock:
            going = self._going.get(name)
            if going is None:
                self._rate.step(owner)
                mine = self._going[name] = Future()
        if going is not None:
            return going.result()
        try:
            page = self._fetched(url, polite)
            self._pages.put(name, page)
            mine.set_result(page)
            return page
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._going[name]

    def _fetched(self, url: Url, polite: bool) -> Page:
        seconds = self._settings.fetch_timeout
        if not self._seats.acquire(timeout=seconds):
            raise Unavailable(f"{AT_ONCE} pages are being fetched, which is as many as are at once")
        try:
            with self._answer(url, time.monotonic() + seconds, polite) as (found, response):
                return self._page(found, response)
        finally:
            self._seats.release()

    def _page(self, url: Url, response: httpcore.Response) -> Page:
        if response.status != 200:
            raise FetchFailed(f"{url} answers with HTTP {response.status}", param="url")
        said = connection.header(response, "content-type")
        media_type = said.partition(";")[0].strip().lower()
        kinds.check(media_type, str(url))
        charset = _CHARSET.search(said)
        data, more = connection.body(response, self._settings.fetch_max_bytes, url.host)
        return Page(str(url), media_type, charset[1] if charset else None, data, more)

    def _robots_txt(self, url: Url, until: float) -> tuple[int, bytes]:
        with self._answer(url, until, polite=False) as (found, response):
            if response.status != 200:
                return response.status, b""
            return 200, connection.body(response, robots.MAX_BYTES, found.host)[0]

    @contextmanager
    def _answer(self, url: Url, until: float, polite: bool) -> Iterator[tuple[Url, httpcore.Response]]:
        """The answer at the end of the redirects, every one of which is checked as the first URL is (row R5). Their
        bodies are not read (row R10). `polite`: not without the leave of robots.txt."""
        for _ in range(MAX_REDIRECTS + 1):
            addresses = self._guard.addresses(url, until)
            if polite and not self._robots.allow(url, until):
                raise BadRequest(f"{url} is not fetched: {url.origin}/robots.txt asks programs not to",
                                 code="url_blocked", param="url")
            with connection.asked(url, addresses, until, self._dial, self._context) as response:
                location = connection.header(response, "location")
                if response.status not in REDIRECTS or not location:
                    yield url, response
                    return
            url = _next(url, location)
        raise FetchFailed(f"{url.host} redirects more than {MAX_REDIRECTS} times: given up", param="url")


def _name(url: Url, polite: bool) -> str:
    """What a page is remembered by: what was had without the leave of robots.txt is not for who needs that."""
    return str(url) if polite else f"without leave {url}"


def _next(url: Url, location: str) -> Url:
    found = urls.join(url, location)
    if url.scheme == "https" and found.scheme == "http":
        raise BadRequest(f"{url.origin} redirects from https to {found.origin}: not followed, since anybody on the way "
                         "could change the page", code="url_blocked", param="url")
    return found
