"""Bytes of tokens → text that may be sent: whole characters, and nothing that may yet become a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Text:
    """The text of one completion, fed token by token.

    What `push` and `finish` return, joined, is the decoded completion cut at the stop string that ends first (of two
    that end together, the one that begins first). Invalid bytes become U+FFFD once no further byte can save them.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stops = [stop for stop in stops if stop]
        self.stopped_by = ""        # the stop string that ended it
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.read = 0               # characters taken, those held back included
        self.certain = 0            # a token whose text begins before this character is part of the text

    @property
    def stopped(self) -> bool:
        return bool(self.stopped_by)

    def push(self, piece: bytes) -> str:
        """Take a token's bytes; return the text that is certain now ("" for none)."""
        return self._take(self._decoder.decode(piece))

    def finish(self) -> str:
        """No more tokens: return what was held back."""
        rest = self._take(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        if not self.stopped:
            self.certain = self.read + 1        # of a token without text, too
        return rest + held

    def _take(self, new: str) -> str:
        if self.stopped:
            return ""
        text, begin = self._held + new, self.read - len(self._held)
        self.read += len(new)
        if (found := self._first_stop(text)) is not None:
            cut, self.stopped_by = found
            self._held, self.certain = "", begin + cut
            return text[:cut]
        keep = len(text) - self._doubtful(text)
        self._held, self.certain = text[keep:], begin + keep
        return text[:keep]

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        """Where the text ends because of which stop string; None when it holds none."""
        found = [(start + len(stop), start, stop) for stop in self.stops if (start := text.find(stop)) >= 0]
        return min(found)[1:] if found else None

    def _doubtful(self, text: str) -> int:
        """How many characters at the end of `text` could begin a stop string."""
        return max((_overlap(text, stop) for stop in self.stops), default=0)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, `stop` itself excluded."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
