"""What was read: a document's text with its title, parts and links, whatever it was before; and how it is quoted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

PARAGRAPH = "\n\n"
CUT = "\n> […]"
LONGEST_WORD = 32           # characters that a token, or whatever is measured, has at most
MAX_TEXT = 4 << 20          # characters of a document's text; what is beyond is cut off
# Nobody sees these, and a model reads them: controls, directions of writing, tags (U+E0000), halves of a pair.
_UNSEEN = dict.fromkeys([*range(9), *range(11, 32), *range(0x7F, 0xA0), 0xAD, 0x61C, *range(0x200B, 0x2010), 0x2060,
                         *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF, *range(0xD800, 0xE000),
                         *range(0xE0000, 0xE0080)])
_JOINERS = (0x200C, 0x200D)         # that words of some scripts and emoji are written with
for _code in _JOINERS:
    del _UNSEEN[_code]
_NEW_LINES = str.maketrans({"\r": "\n", "\v": "\n", "\f": "\n", "\x1c": "\n", "\x1d": "\n", "\x1e": "\n", "\x85": "\n",
                            "\u2028": "\n", "\u2029": "\n\n", "\t": " ", "\xa0": " "})


@dataclass(frozen=True)
class Link:
    """Where a document points to: an absolute http(s) URL, and the words that say so."""

    url: str
    text: str = ""


@dataclass(frozen=True)
class Section:
    """`document.text[start:end]`, called `title`: a heading, "page 3", "slide 2", the name of a sheet, an entry."""

    title: str
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """`source`: the URL or the name it came by. `media_type`: what it turned out to be. `sections` lie in order and
    do not overlap; text may lie before the first one. `truncated`: there was more than is kept."""

    title: str
    text: str
    source: str
    media_type: str
    links: tuple[Link, ...] = ()
    sections: tuple[Section, ...] = ()
    truncated: bool = False

    def part(self, section: Section) -> str:
        return self.text[section.start:section.end]


def clean(text: str) -> str:
    """`text` without what nobody would see, with `\\n` as its only line break and at most one line empty at once."""
    text = text.replace("\r\n", "\n").translate(_NEW_LINES).translate(_UNSEEN)
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def one_line(text: str, longest: int = 200) -> str:
    """`clean` text on one line, for titles and names."""
    return " ".join(clean(text).split())[:longest]


def quoted(documents: Sequence[Document], limit: int, measure: Callable[[str], int] = len) -> str:
    """`documents` as a block for a message of the user: `[1] title (source)`, then the text with `> ` before each line.

    No text can end its own quotation or begin another source, since each of its lines, whatever breaks it, is marked.
    `limit`: how much of `measure` (characters by default, or a counter of tokens) the block may have; the documents
    share it, and what a short one leaves goes to the others. Texts are cut at the end of a paragraph, with `> […]`.
    """
    heads = [f"[{number}] {one_line(document.title)}" +
             (f" ({one_line(document.source, 2048)})" if document.source != document.title else "")
             for number, document in enumerate(documents, 1)]
    left = limit - sum(measure(f"{head}\n{PARAGRAPH}") for head in heads)
    bodies = [""] * len(documents)
    short_first = sorted(range(len(documents)), key=lambda at: len(documents[at].text))
    for place, at in enumerate(short_first):
        bodies[at] = _cut(clean(documents[at].text), left // (len(documents) - place), measure)
        left -= measure(bodies[at])
    return "\n\n".join(f"{head}\n{text}" for head, text in zip(heads, bodies, strict=True) if text)


def _cut(text: str, limit: int, measure: Callable[[str], int]) -> str:
    """As many of the paragraphs of `text`, marked as quoted, as `limit` allows; of the first one as many words."""
    within = text[:max(limit, 0) * LONGEST_WORD]        # so that what is far too long is not measured
    if not text:
        return ""
    if within == text and measure(_marked(text)) <= limit:
        return _marked(text)
    return _first(within, PARAGRAPH, limit, measure) or _first(within, " ", limit, measure)


def _first(text: str, gap: str, limit: int, measure: Callable[[str], int]) -> str:
    """As many of the pieces between `gap`s as `limit` allows, and the sign that there are more."""
    pieces = text.split(gap)
    kept = most(len(pieces), lambda count: measure(_marked(gap.join(pieces[:count])) + CUT) <= limit)
    return _marked(gap.join(pieces[:kept])) + CUT if kept else ""


def most(top: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `top` that fits, where all smaller ones do; 0 if none does."""
    low = 0
    while low < top:
        middle = (low + top + 1) // 2
        low, top = (middle, top) if fits(middle) else (low, middle - 1)
    return low


def _marked(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))
