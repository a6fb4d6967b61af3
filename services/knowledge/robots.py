"""What robots.txt asks of us, by the standard library's reader, remembered for an hour (RFC 9309)."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from urllib.robotparser import RobotFileParser

from services.errors import FetchFailed
from services.knowledge.connection import AGENT
from services.knowledge.recent import Recent
from services.knowledge.urls import Url

MAX_BYTES = 256 << 10       # of a robots.txt; what is beyond does not count
AGE, ORIGINS, ROOM = 3600.0, 256, 2 << 20       # seconds; how many are remembered, of so many bytes together
_NUMBERED = re.compile(r"\s*(?:crawl-delay|request-rate)\s*:", re.IGNORECASE)
_DELAY = re.compile(r"\s*crawl-delay\s*:\s*([0-9]{1,6}(?:\.[0-9]{0,6})?)\s*(?:#.*)?", re.IGNORECASE)
Ask = Callable[[Url, float], tuple[int, bytes]]     # URL and deadline -> HTTP status and body


class Robots:
    def __init__(self, ask: Ask, now: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._known: Recent[tuple[RobotFileParser, int]] = Recent(AGE, ORIGINS, ROOM, lambda known: known[1], now)

    def allow(self, url: Url, until: float) -> bool:
        """Whether `url` may be fetched. Raises `FetchFailed` when its host cannot say."""
        return self._of(url, until).can_fetch(AGENT, str(url))

    def delay(self, url: Url, until: float) -> float:
        """Seconds that its host wants between two requests; 0 when it does not say."""
        return float(self._of(url, until).crawl_delay(AGENT) or 0)

    def _of(self, url: Url, until: float) -> RobotFileParser:
        known = self._known.get(url.origin)
        if known is None:
            known = self._read(Url(url.scheme, url.host, url.port, "/robots.txt"), until)
            self._known.put(url.origin, known)
        return known[0]

    def _read(self, url: Url, until: float) -> tuple[RobotFileParser, int]:
        """The rules, and the bytes that they are written in."""
        status, text = self._ask(url, until)
        if status == 429 or status >= 500:
            raise FetchFailed(f"{url} answers with HTTP {status}, so nobody knows what may be fetched there; "
                              "try again later", param="url")
        rules = RobotFileParser()
        try:
            rules.parse(_whole_seconds(text.decode("utf-8", "replace").splitlines() if status == 200 else []))
        except ValueError as error:         # a path that the standard library's parser of URLs refuses
            raise FetchFailed(f"{url} cannot be understood ({error}), so nobody knows what may be fetched there",
                              param="url") from None
        return rules, len(text)


def _whole_seconds(lines: Iterable[str]) -> Iterator[str]:
    """`lines` with delays as the reader takes them: it knows no fractions, and stumbles over `²` and 5,000 digits."""
    for line in lines:
        if found := _DELAY.fullmatch(line):
            yield f"Crawl-delay: {math.ceil(float(found[1]))}"
        elif not _NUMBERED.match(line):
            yield line
