"""RSS and Atom as S4.16 writes them out: `## feed`, its description, and for each entry `# title` and summary."""

from __future__ import annotations

import io
import re

import feedparser

from services.errors import BadRequest
from services.knowledge import kinds, urls
from services.knowledge.documents import Document, Link, one_line
from services.knowledge.readers import html, xml
from services.knowledge.readers.building import Builder, Unreadable
from services.knowledge.readers.text import decoded

MAX_ENTRIES = 500
_DECLARATION = re.compile(r"\s*<\?xml[^>]{0,200}\?>")
_DEFINITION = re.compile(r"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)


def read(data: bytes, charset: str | None, name: str, kind: str) -> Document:
    text = _DECLARATION.sub("", decoded(data, charset), count=1)
    if _DEFINITION.search(text):
        raise Unreadable("the feed defines entities of its own (<!DOCTYPE or <!ENTITY), which are not expanded")
    # A stream, since of a text or bytes the library would make out a URL or a file's name.
    found = feedparser.parse(io.BytesIO(text.encode("utf-8", "replace")), resolve_relative_uris=False,
                             response_headers={"content-type": "application/xml; charset=utf-8"})
    if not found.version:
        return xml.read(text.encode("utf-8", "replace"), "utf-8", name, kinds.XML)
    builder = Builder(name, kind)
    builder.title = html.text_of(found.feed.get("title", ""))
    builder.add(f"## {one_line(builder.title)}")
    builder.add(html.text_of(found.feed.get("description", "")))
    links = []
    for entry in found.entries[:MAX_ENTRIES]:
        builder.heading(html.text_of(entry.get("title", "")) or "(no title)", 1)
        builder.add(html.text_of(entry.get("summary") or _content(entry)))
        links += _link(name, entry)
    builder.full |= len(found.entries) > MAX_ENTRIES
    return builder.document(links)


def _content(entry: feedparser.FeedParserDict) -> str:
    return next((part.get("value", "") for part in entry.get("content", [])), "")


def _link(name: str, entry: feedparser.FeedParserDict) -> list[Link]:
    try:
        link = entry.get("link", "")
        url = urls.join(urls.parse(name), link) if "://" in name else urls.parse(link)
    except BadRequest:
        return []
    return [Link(str(url), one_line(html.text_of(entry.get("title", ""))))]
