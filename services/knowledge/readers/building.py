"""A document as it grows: blocks of text, under the titles of sections."""

from __future__ import annotations

from collections.abc import Sequence

from services.knowledge.documents import MAX_TEXT, Document, Link, Section, clean, one_line

GAP = "\n\n"


class Unreadable(Exception):
    """Why a document cannot be read. Told to the client."""


class Builder:
    def __init__(self, source: str, media_type: str) -> None:
        self._source, self._media_type = source, media_type
        self._blocks: list[str] = []
        self._size = 0
        self._titles: list[tuple[str, int]] = []        # of sections, and where they begin
        self.title = ""
        self.full = False

    def section(self, title: str) -> None:
        """What is added from here on is under `title`."""
        if title := one_line(title):
            self._titles.append((title, self._size))

    def add(self, text: str) -> None:
        text = clean(text)
        if len(text) > MAX_TEXT - self._size:
            text, self.full = text[:MAX_TEXT - self._size], True
        if text:
            self._blocks.append(text)
            self._size += len(text) + len(GAP)

    def heading(self, text: str, level: int = 2) -> None:
        """A section that begins with its title as a line of the text."""
        if title := one_line(text):
            self.section(title)
            self.add(f"{'#' * level} {title}")

    def document(self, links: Sequence[Link] = ()) -> Document:
        text = GAP.join(self._blocks)
        titles = [(title, start) for title, start in self._titles if start < len(text)]
        ends = [start - len(GAP) for _, start in titles[1:]] + [len(text)]
        sections = tuple(Section(title, start, max(start, end))
                         for (title, start), end in zip(titles, ends, strict=False))
        title = one_line(self.title) or (sections[0].title if sections else "") or self._source
        return Document(title, text, self._source, self._media_type, tuple(links), sections, self.full)
