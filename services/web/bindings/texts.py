"""Texts on their way to a platform."""

from __future__ import annotations

from collections.abc import Iterator

MOST_PIECES = 5             # messages for one answer: as many as Slack takes for one command
NOTHING = "…"
CUT = "\n… (cut: too long for a chat)"


def pieces(text: str, most: int, count: int = MOST_PIECES) -> list[str]:
    """`text` in one to `count` parts of at most `most` UTF-16 units, as platforms count. Cut where a paragraph, a
    line or a word ends, if that is not too early; what is beyond is left out, and the last part says so."""
    found = list(_parts(_plain(text), most)) or [NOTHING]
    if len(found) > count:
        last = _fitting(found[count - 1], most - len(CUT))
        found = [*found[:count - 1], last.rstrip() + CUT]
    return found


def _plain(text: str) -> str:
    """Without what no JSON in UTF-8 can carry."""
    return text.encode("utf-8", "replace").decode().replace("\0", "").strip()


def _parts(rest: str, most: int) -> Iterator[str]:
    while rest:
        part = _fitting(rest, most)
        if len(part) < len(rest):
            seen = rest[:len(part) + 1]
            ends = (seen.rfind(end) for end in ("\n\n", "\n", " "))
            part = part[:next((at for at in ends if at > len(part) // 2), len(part))]
        yield part.rstrip()
        rest = rest[len(part):].lstrip()


def _fitting(text: str, most: int) -> str:
    """The beginning of `text` that has at most `most` UTF-16 units."""
    return text[:most].encode("utf-16-le")[:2 * most].decode("utf-16-le", "ignore")
