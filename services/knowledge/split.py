"""A document's text in parts of so many tokens of the model that reads them, each with the headings above it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

PORTION = 2000              # texts counted at once
LONG_WORD = 100             # characters from which a word's tokens are estimated: nobody asks a model about base64
TITLE = 160                 # characters of a part's title
EDGE = 2                    # tokens that a word may take more where no blank precedes, at the beginning of a part
_HEADING = re.compile(r"(#{1,6})[ \t]+([^ \t].*)")
_FENCE = re.compile(r"[ \t]*(```|~~~)")
_WORDS = re.compile(r"\S+")
# paragraphs, lines, sentences, words, characters
_SEPARATORS = [r"\n\s*\n", r"\n", r"(?<=[.!?;])\s+|(?<=[。！？；])", r"\s+", ""]
Count = Callable[[Sequence[str]], list[int]]        # the tokens of each text, with those that go around each


@dataclass(frozen=True)
class Part:
    start: int              # its first character in the text
    title: str              # of the document, then the headings
    text: str


def split(text: str, title: str, size: int, count: Count, known: Sequence[tuple[str, int, int]] = (),
          overlap: int | None = None) -> list[Part]:
    """Parts of `text` that have, title included, at most `size` tokens each; they overlap by `overlap` of them, else
    by an eighth of that.

    `known`: title, first character and end of the text's sections; without them Markdown's headings count.
    """
    from langchain_text_splitters import RecursiveCharacterTextSplitter
    tokens = _Tokens(text, count)
    parts: list[Part] = []
    for start, heading, section in _known(text, known) if known else sections(text):
        under = _shown([title, *heading], tokens, size // 2)
        room = max(8, size - tokens.of(under) - tokens.around - EDGE)
        twice = min(size // 8 if overlap is None else overlap, room // 2)
        splitter = RecursiveCharacterTextSplitter(
            separators=_SEPARATORS, is_separator_regex=True, keep_separator="end", chunk_size=room - twice,
            chunk_overlap=0, length_function=tokens.of)
        before = end = 0
        for piece in splitter.split_text(section):
            at = section.index(piece, end)
            end = at + len(piece)
            first = _back(section, before, at, twice, tokens)
            parts.append(Part(start + first, under, section[first:end]))
            before = at
    return list(_fitting(parts, size, count))


def _back(text: str, before: int, at: int, overlap: int, tokens: _Tokens) -> int:
    """Where a part begins that repeats at most `overlap` tokens of what lies from `before` to `at`, in whole words."""
    for word in reversed(list(_WORDS.finditer(text, before, at))):
        overlap -= tokens.of(word[0])
        if overlap < 0:
            break
        at = word.start()
    return at


def told(title: str, text: str) -> str:
    """A part as the model reads it."""
    return f"{title}\n{text}" if title else text


def sections(text: str) -> Iterator[tuple[int, list[str], str]]:
    """(first character, headings it stands under, text) of what is between Markdown's headings, blank ones left out."""
    headings: list[tuple[int, str]] = []
    start = at = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        bare = line.rstrip("\r\n")
        if found := _FENCE.match(bare):
            fence = "" if fence == found[1] else fence or found[1]
        elif not fence and (found := _HEADING.fullmatch(bare)):
            if text[start:at].strip():
                yield start, [name for _, name in headings], text[start:at]
            start = at + len(line)
            name = found[2].rstrip(" \t#") or found[2]
            headings = [one for one in headings if one[0] < len(found[1])] + [(len(found[1]), name)]
        at += len(line)
    if text[start:].strip():
        yield start, [name for _, name in headings], text[start:]


def _known(text: str, known: Sequence[tuple[str, int, int]]) -> Iterator[tuple[int, list[str], str]]:
    """As `sections`, with what lies between those that are known."""
    at = 0
    for title, start, end in (*known, ("", len(text), len(text))):
        for first, last, headings in ((at, start, []), (start, end, [title])):
            if text[first:last].strip():
                yield first, headings, text[first:last]
        at = end


def _shown(path: list[str], tokens: _Tokens, room: int) -> str:
    """The title of a part: as much of the path as has room, its end first."""
    names = [" ".join(name.split())[:TITLE] for name in dict.fromkeys(path) if name.strip()]
    while len(names) > 1 and tokens.of(" > ".join(names)) > room:
        del names[0]
    title = " > ".join(names)
    return title if tokens.of(title) <= room else ""


class _Tokens:
    """How many tokens a text has: the sum of its words', each behind a blank. That is exact for models that split at
    blanks, near enough for the others; what comes out is counted as a whole."""

    def __init__(self, text: str, count: Count) -> None:
        self._count = count
        self._one, two = count(["a", "a a"])    # a model may refuse to count nothing
        self.around = max(0, 2 * self._one - two)
        self._known: dict[str, int] = {}
        self._learn(set(_WORDS.findall(text)))

    def _learn(self, words: set[str]) -> None:
        asked = sorted(word for word in words if len(word) <= LONG_WORD)
        for start in range(0, len(asked), PORTION):
            part = asked[start:start + PORTION]
            counts = self._count([f"a {word}" for word in part])
            self._known.update(zip(part, (n - self._one for n in counts), strict=True))

    def of(self, text: str) -> int:
        return sum(self._word(word) for word in _WORDS.findall(text))

    def _word(self, word: str) -> int:
        """Parts of words are only met where a word is too long for a part; two characters a token is many."""
        return self._known.get(word) or (len(word) + 1) // 2


def _fitting(parts: list[Part], size: int, count: Count) -> Iterator[Part]:
    """`parts`, those that turn out to be too long in halves."""
    while parts:
        first, parts = parts[:PORTION], parts[PORTION:]
        short = [part for part in first if len(part.text) <= 8 * size]
        counts = dict(zip(map(id, short), count([told(part.title, part.text) for part in short]), strict=True))
        for part in first:
            if counts.get(id(part), size + 1) <= size or len(part.text) < 2:
                yield part
            else:
                yield from _fitting(list(_halves(part)), size, count)


def _halves(part: Part) -> Iterator[Part]:
    text, half = part.text, len(part.text) // 2
    middle = text.rfind(" ", 1, half) + 1 or half
    for at, piece in ((0, text[:middle]), (middle, text[middle:])):
        if piece.strip():
            yield Part(part.start + at, part.title, piece)
