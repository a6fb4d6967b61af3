"""Feeds that are brought in when a prompt has certain words: `data/feeds.json`, which may be edited while serving.

The file is `{<name>: {"url": …, "when": [[word, …], …], "introduction": …, "status": …}, …}`, the most particular ones
first. A valid one is taken over at the next prompt; a wrong one is told of once and in `Feeds.problem`, and the last
good one stays in use. Without the file it is made anew; `{}` is none.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import unicodedata
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from services.errors import BadRequest, ConfigError, ParleyError
from services.knowledge import urls
from services.knowledge.shipped_feeds import SHIPPED
from services.store import config, disk

log = logging.getLogger("parley.knowledge")
Word = Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S")]        # else it would match any prompt
Group = Annotated[list[Word], Field(min_length=1, max_length=100)]


class Feed(BaseModel):
    """`when`: groups of words; a prompt matches when it has a word of each group (words match by how they begin)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(min_length=1, max_length=200)
    url: str
    when: list[Group] = Field(min_length=1, max_length=20)
    introduction: str = Field("", max_length=1000)      # what is said to the model before the feed's text
    status: str = Field("", max_length=200)             # what is said to the user while it is fetched (S4.13)
    _patterns: list[re.Pattern[str]] = PrivateAttr([])

    @field_validator("url")
    @classmethod
    def _url(cls, text: str) -> str:
        try:
            return str(urls.parse(text))
        except BadRequest as error:
            raise ValueError(error.message) from None

    def model_post_init(self, context: object) -> None:
        self._patterns = [_pattern(group) for group in self.when]

    def matches(self, folded: str) -> bool:
        """Whether a prompt, `folded`, asks for it."""
        return all(pattern.search(folded) for pattern in self._patterns)


class Feeds:
    """The feeds of `path`, as it is now; made from the shipped ones when it is not there. Any thread may ask."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()               # guards all below
        self._wrong: str | None = None
        self._feeds: list[Feed] = []
        self._seen: config.Signature | None = None

    @property
    def problem(self) -> str | None:
        """Why the file of now is not what is used; None when it is."""
        self.current()
        return self._wrong

    def current(self) -> list[Feed]:
        """The feeds in the file's order."""
        with self._lock:
            seen = config.signature(self.path)
            if seen is None:
                self._make()
                seen = config.signature(self.path)
            if seen != self._seen:
                self._seen = seen
                self._load()
            return self._feeds

    def match(self, prompt: str) -> list[Feed]:
        """The feeds that `prompt` asks for, in the file's order: the most particular ones first."""
        folded = _folded(prompt)
        return [feed for feed in self.current() if feed.matches(folded)]

    def _make(self) -> None:
        text = json.dumps(SHIPPED, indent=2, ensure_ascii=False) + "\n"
        try:
            disk.write_atomic(self.path, text.encode(), mode=0o644)
        except ParleyError as error:        # without a file the shipped ones serve, and its folder may be read-only
            self._feeds, self._wrong = _parsed(SHIPPED), f"{config.shown(self.path)} cannot be made: {error.message}"

    def _load(self) -> None:
        if self._seen is None:
            return
        try:
            document = config.read(self.path, "feeds by name")
            self._feeds, self._wrong = _parsed(document.values, document), None
            log.info("%s is in use, with %d feeds", config.shown(self.path), len(self._feeds))
        except ConfigError as error:
            self._wrong = error.message
            log.error("%s; the last good feeds stay in use", error.message)


def _parsed(values: dict[str, Any], document: config.Document | None = None) -> list[Feed]:
    """The feeds in `values`, or the first fault with its line in `document`."""
    feeds = []
    for name, value in values.items():
        try:
            feeds.append(Feed.model_validate({**value, "name": name} if isinstance(value, dict) else value))
        except ValidationError as error:
            assert document is not None, "the shipped feeds are valid"
            raise _fault(document, name, error) from None
    return feeds


def _fault(document: config.Document, name: str, error: ValidationError) -> ConfigError:
    fault = error.errors(include_url=False)[0]
    at = str(fault["loc"][0]) if fault["loc"] else ""
    message = fault["msg"].removeprefix("Value error, ")
    if not at:
        message = 'expected an object with at least "url" and "when"'
    elif fault["type"] == "extra_forbidden":
        message = "unknown field; known are: introduction, status, url, when"
    elif fault["type"] == "missing":
        message = 'missing; every feed needs it, such as "when": [["weather"], ["today", "tomorrow"]]'
    return document.error(f"feed {name[:80]!r}: {at}: {message}" if at else f"feed {name[:80]!r}: {message}", name, at)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _pattern(group: list[str]) -> re.Pattern[str]:
    words = (r"\s+".join(map(re.escape, _folded(word).split())) for word in group)
    return re.compile(rf"(?<!\w)(?:{'|'.join(words)})")
