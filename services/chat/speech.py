"""What a model writes → what it says: its thought, its answer, and the calls of tools, as they come.

Only what may turn out to be a tag, or white space at an end, is held back. What looks like a call and is none is part
of the answer; from a runner that holds the model to its form no such thing comes.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable
from itertools import takewhile

from services.chat.events import Called, Delta, Reasoned, Trimmed
from services.chat.messages import Call
from services.chat.thinking import Thinks
from services.chat.tools import Form

LETTERS = string.ascii_letters + string.digits
ID_LETTERS = 24
WHITE = " \t\n\r\v\f"      # before a thought or a call: what the runner, which sees bytes, takes for it
NOT = -1                # no match, whatever follows

Said = Delta | Reasoned | Called


class Reader:
    """One answer, fed piece by piece. The events are the same, joined, however it is cut into pieces.

    `form`: of the calls it may hold; None: none. `thinks`: the tags of its thought; None: it has none. White space
    around the answer and around the thought is left out. `calls` are whole ones; one that the answer's end cuts, though
    its first part was told, is part of `content`.
    """

    def __init__(self, form: Form | None = None, thinks: Thinks | None = None) -> None:
        self.calls: list[Call] = []
        self._content, self._reasoning = Trimmed(), Trimmed()
        self._form, self._thinks = form, thinks
        self._inside = bool(thinks and thinks.open)     # a thought was begun by the prompt
        self._text = ""                                 # that is not read yet
        self._said: list[Said] = []
        self._call = _Call()                            # that is being read
        self._read = self._start

    @property
    def content(self) -> str:
        """All `Delta`s, joined."""
        return self._content.text

    @property
    def reasoning(self) -> str:
        """All `Reasoned`s, joined."""
        return self._reasoning.text

    def feed(self, piece: str) -> list[Said]:
        """What is certain now that `piece` has come."""
        self._text += piece
        while self._text and self._read():
            pass
        said, self._said = self._said, []
        return said

    def finish(self) -> list[Said]:
        """No more pieces: what was held back."""
        text, self._text = self._text, ""
        if self._read == self._arguments:
            text = self._call.raw + text
        if self._read == self._thought or self._inside:
            self._reason(text)
        elif self._read != self._end:
            self._say(text)
        said, self._said = self._said, []
        return said

    # ------------------------------------------------------------ what is read: True when there may be more to read

    def _start(self) -> bool:
        """Where a thought may begin."""
        if not self._thinks:
            self._read = self._answer
            return True
        begin, bare = self._thinks.begin, self._text.lstrip(WHITE)
        if bare.startswith(begin):
            self._text, self._read = bare[len(begin):], self._thought
            return True
        if begin.startswith(bare):
            return False
        self._read = self._thought if self._inside else self._answer
        return True

    def _thought(self) -> bool:
        assert self._thinks
        if not self._upto(self._thinks.end, self._reason):
            return False
        self._text, self._read, self._inside = self._text[len(self._thinks.end):], self._start, False
        return True

    def _answer(self) -> bool:
        """Up to a call."""
        if self._form is None:
            self._read = self._plain
        elif not self._form.leads:
            if not self._upto(self._form.trigger, self._say):
                return False
            self._read = self._first
        else:
            bare = self._text.lstrip(WHITE)
            if bare != self._form.trigger and self._form.trigger.startswith(bare):
                return False
            self._read = self._first if bare.startswith(self._form.trigger) else self._plain
        return True

    def _plain(self) -> bool:
        """All that may still come is text."""
        self._say(self._text)
        self._text = ""
        return False

    def _first(self) -> bool:
        """The first call, up to its arguments."""
        assert self._form
        name, end = _head(self._form, self._form.opening, self._text)
        if end == NOT:
            size = len(self._form.trigger) + len(self._text) - len(self._text.lstrip(WHITE))
            self._say(self._text[:size])
            self._text, self._read = self._text[size:], self._plain if self._form.leads else self._answer
            return True
        return self._begin(name, end)

    def _arguments(self) -> bool:
        size = self._call.take(self._text)
        self._said.append(Called(len(self.calls), arguments=self._text[:size]))
        self._text = self._text[size:]
        if not self._call.depth:
            self.calls.append(Call(self._call.id, self._call.name, self._call.arguments))
            self._read = self._end
        return not self._call.depth

    def _end(self) -> bool:
        """Of a call, behind its arguments."""
        assert self._form
        end = _match(self._form.end, self._text)
        if end is None:
            return False
        self._text = self._text[max(end, 0):]
        self._read = self._next if self._form.closing else self._plain if self._form.leads else self._answer
        return True

    def _next(self) -> bool:
        """Another call, or the end of all."""
        assert self._form
        closing, (name, end) = _match(self._form.closing, self._text), _head(self._form, self._form.between, self._text)
        if closing is not None and closing != NOT:
            self._text, self._read = self._text[closing:], self._answer
            return True
        if closing == NOT and end == NOT:
            self._read = self._answer
            return True
        return end != NOT and self._begin(name, end)

    # ------------------------------------------------------------ what is said

    def _begin(self, name: str, end: int | None) -> bool:
        """A call whose arguments begin at `end`; None: that is not known yet."""
        if end is None:
            return False
        self._call = _Call("call_" + "".join(secrets.choice(LETTERS) for _ in range(ID_LETTERS)), name,
                           self._text[:end])
        self._said.append(Called(len(self.calls), id=self._call.id, name=name))
        self._text, self._read = self._text[end:], self._arguments
        return True

    def _upto(self, tag: str, say: Callable[[str], None]) -> bool:
        """Say what stands before `tag`, or all that cannot be its beginning; whether it is there."""
        at = self._text.find(tag)
        found = at >= 0
        if not found:
            at = len(self._text) - _overlap(self._text, tag)
        say(self._text[:at])
        self._text = self._text[at:]
        return found

    def _say(self, text: str) -> None:
        if ready := self._content.feed(text):
            self._said.append(Delta(ready))

    def _reason(self, text: str) -> None:
        if ready := self._reasoning.feed(text):
            self._said.append(Reasoned(ready))


class Verbatim:
    """The reader of a completion without turns, and of an answer's rest: its text is nothing but itself."""

    def __init__(self) -> None:
        self.content, self.reasoning = "", ""
        self.calls: list[Call] = []

    def feed(self, piece: str) -> list[Said]:
        self.content += piece
        return [Delta(piece)] if piece else []

    def finish(self) -> list[Said]:
        return []


class _Call:
    """A call whose arguments, a JSON object, are being read."""

    def __init__(self, call_id: str = "", name: str = "", head: str = "") -> None:
        self.id, self.name, self.head, self.arguments = call_id, name, head, ""
        self.depth = 0          # of brackets that are open
        self._quoted = self._escaped = False

    @property
    def raw(self) -> str:
        """All that was read of it."""
        return self.head + self.arguments

    def take(self, text: str) -> int:
        """How much of `text` is arguments; `depth` is 0 when they end there."""
        for at, letter in enumerate(text):
            if self._quoted:
                self._quoted = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
            elif letter in "{[":
                self.depth += 1
            elif letter in "}]":
                self.depth -= 1
                if not self.depth:
                    self.arguments += text[:at + 1]
                    return at + 1
            else:
                self._quoted = letter == '"'
        self.arguments += text
        return len(text)


def _match(literal: str, text: str) -> int | None:
    """Where `literal` ends at the start of `text`, white space aside; NOT: it is not there; None: it may come yet."""
    at = 0
    for letter in "".join(literal.split()):
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return None
        if text[at] != letter:
            return NOT
        at += 1
    return at


def _head(form: Form, lead: str, text: str) -> tuple[str, int | None]:
    """The tool's name in a call that begins behind `lead`, and where its arguments begin, a `{`; as `_match`."""
    start = _match(lead + form.before, text)
    if start is None or start == NOT:
        return "", start
    rest = text[start:]
    name = "".join(takewhile(lambda letter: not letter.isspace() and letter != form.after.strip()[0], rest))
    end = _match(form.after + "{", rest[len(name):])
    if end is None:
        return name, None
    return name, start + len(name) + end - 1 if name and end != NOT else NOT


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that `tag` begins with."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
