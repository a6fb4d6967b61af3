"""Special tokens belong to the template: nobody's text may forge one (row T5; engine.md point 10).

A prompt goes to the runner as segments, each tokenised by itself with special tokens parsed. It is one segment, so
merges stay what the model was trained on, unless some content (a turn, the new text, a system text) holds a special
token or completes one together with what stands beside it: then the prompt is cut inside that token. No text is ever
changed. The cuts travel through the template as private characters that no content holds: `CUT` inside a token, `EDGE`
where a token might arise with a neighbour; an edge that turns out to be none is closed again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from services.errors import BadRequest

_PREFERRED = ("\ue0f1", "\ue0f2", "\ue0f3")
_END = ""       # key of a trie's node where a token ends


class Special:
    """The special tokens of one model, ready to be looked for. A token of one character cannot be cut: left out."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = sorted({token for token in tokens if len(token) > 1})
        self.longest = max(map(len, self.tokens), default=0)
        self._heads = {token[:size] for token in self.tokens for size in range(1, len(token))}
        self._tails = {token[at:] for token in self.tokens for at in range(1, len(token))}
        self._start = re.compile(_starts(self.tokens), re.DOTALL) if self.tokens else None

    def mark(self, content: str, cut: str, edge: str) -> str:
        """`content` with `cut` after the first character of each special token in it, also of overlapping ones, and
        `edge` where one could arise with a neighbour, also after a template has trimmed white space off the ends."""
        if not content or self._start is None:
            return content
        marks = {match.end(): cut for match in self._start.finditer(content)}
        bare_start = len(content) - len(content.lstrip())
        bare_end = len(content.rstrip())
        for start in {0, bare_start} - {len(content)}:
            if self._may_complete(content, start, bare_end) or self._may_complete(content, start, len(content)):
                marks.setdefault(start, edge)
        for end in {bare_end, len(content)} - {0}:
            for at in self._may_begin(content, end):
                marks.setdefault(at + 1, edge)
        return _insert(content, marks) if marks else content

    def _may_complete(self, content: str, start: int, end: int) -> bool:
        """Whether what stands before `start` may end up as the head of a token that goes on here."""
        if any(content[start:start + size] in self._tails for size in range(1, min(self.longest, end - start + 1))):
            return True
        whole = content[start:end]
        return 0 < len(whole) < self.longest and any(whole in token[1:] for token in self.tokens)

    def _may_begin(self, content: str, end: int) -> list[int]:
        """Where a token may begin that what stands after `end` goes on with."""
        return [at for at in range(max(0, end - self.longest + 1), end) if content[at:end] in self._heads]

    def crosses(self, text: str, at: int, since: int) -> bool:
        """Whether a special token that begins at `since` or later stands across the position `at`."""
        first = max(since, at - self.longest + 1)
        window = text[first:at + self.longest - 1]
        for token in self.tokens:
            found = window.find(token)
            while 0 <= found < at - first:
                if found + len(token) > at - first:
                    return True
                found = window.find(token, found + 1)
        return False


    def undecided(self, text: str, at: int, since: int) -> bool:
        """Whether a special token may come to stand across the position `at`, by what `text` will go on with."""
        first = max(since, len(text) - self.longest + 1)
        return any(text[start:] in self._heads for start in range(first, at))


def _starts(tokens: Sequence[str]) -> str:
    """A pattern that matches the first character of every occurrence of a token, in time linear to the text."""
    trie: dict[str, Any] = {}
    for token in tokens:
        node = trie
        for char in token:
            node = node.setdefault(char, {})
        node[_END] = {}
    return "|".join(f"{re.escape(char)}(?={_pattern(node)})" for char, node in trie.items())


def _pattern(node: dict[str, Any]) -> str:
    """The rest of a token. A shorter token that ends here is enough: the longer ones are cut at the same place."""
    if _END in node:
        return ""
    branches = [re.escape(char) + _pattern(child) for char, child in node.items()]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _insert(content: str, marks: dict[int, str]) -> str:
    parts, before = [], 0
    for at in sorted(marks):
        parts += [content[before:at], marks[at]]
        before = at
    return "".join([*parts, content[before:]])


@lru_cache(maxsize=16)
def special(tokens: tuple[str, ...]) -> Special:
    return Special(tokens)


def segments(tokens: Sequence[str], contents: Sequence[str], own: str,
             render: Callable[[Sequence[str]], str]) -> list[str]:
    """What `render(contents)` gives, as segments in which no content forges one of `tokens`.

    `own` is the template's text. `render` may trim, repeat or drop contents, but not take them apart.
    """
    finder = special(tuple(tokens))
    cut, edge, _ = _unused(contents, own)
    return _parted(finder, render([finder.mark(content, cut, edge) for content in contents]), cut, edge)


def opening(tokens: Sequence[str], contents: Sequence[str], own: str,
            render: Callable[[Sequence[str]], str]) -> tuple[list[str], str]:
    """What `segments` of `contents` and one content more begin with, whatever that one will be, and the text after it.

    The segments end where the last content will stand, or before that, where it may decide whether the text is cut.
    There are none when `render` does not let that content through as it is.
    """
    finder = special(tuple(tokens))
    cut, edge, place = _unused(contents, own)
    before, found, after = render([*(finder.mark(content, cut, edge) for content in contents), place]).partition(place)
    if not found:
        return [], ""
    return _parted(finder, before, cut, edge, complete=False), re.sub(f"[{cut}{edge}{place}]", "", after)


def _parted(finder: Special, marked: str, cut: str, edge: str, complete: bool = True) -> list[str]:
    """`marked` as segments, without its marks. One that is not `complete` ends where its going on would matter."""
    pieces = re.split(f"([{cut}{edge}])", marked)
    text, kept, at, result = "".join(pieces[::2]), 0, 0, []
    end = len(text)
    for piece, mark in zip(pieces[::2], pieces[1::2], strict=False):
        at += len(piece)
        if kept < at and (mark == cut or finder.crosses(text, at, kept)):
            result.append(text[kept:at])
            kept = at
        elif not complete and finder.undecided(text, at, kept):
            end = at
            break
    return [*result, text[kept:end]] if kept < end or (complete and not result) else result


def _unused(contents: Sequence[str], own: str) -> tuple[str, str, str]:
    """Three characters that occur nowhere in the prompt."""
    if not any(char in text for char in _PREFERRED for text in chain(contents, (own,))):
        return _PREFERRED
    used = set(own).union(*map(set, contents))
    free = (chr(code) for code in chain(range(0xE000, 0xF900), range(0xF0000, 0x10FFFE)) if chr(code) not in used)
    found = list(islice(free, 3))
    if len(found) < 3:
        raise BadRequest("the conversation uses every private character of Unicode", code="bad_unicode")
    return found[0], found[1], found[2]
