"""The one guarded fetcher: the only way by which a URL that a client, a page or a feed names is asked for (rows R)."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.errors import TooManyRequests
from services.knowledge.documents import Document
from services.settings import Settings

MAX_PAGES = 16              # of one request


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
    `UnsupportedMedia`, `TooManyRequests`; `Forbidden` (`fetch_off`) with FETCH=off."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def get(self, url: str, *, owner: str = "", trip: Trip | None = None, fresh: bool = False) -> Page:
        """What is at `url`, from the cache if it was there a moment ago unless `fresh`. `owner`: whose rate it counts
        on (a key's id)."""
        raise NotImplementedError

    def read(self, url: str, *, owner: str = "", trip: Trip | None = None, fresh: bool = False) -> Document:
        """`get`, then `extract`."""
        raise NotImplementedError
