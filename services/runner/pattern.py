"""A regular expression of a JSON Schema → what a grammar says about the text between a JSON string's quotes.

Taken are `^…$` with plain characters, `.`, sets, groups, alternatives and repeats. What cannot be written inside a
JSON string as it stands (quotes, backslashes, control characters) is left out of sets: less than allowed, never more.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

from services.errors import BadSchema
from services.runner.gbnf import (
    HIGHEST,
    UNWRITABLE,
    Chars,
    Either,
    Expression,
    Literal,
    Repeat,
    Row,
    as_json,
    chars,
    others,
)

MOST_PATTERN = 256          # characters
MOST_REPEATS = 512          # of one repeat
MOST_WEIGHT, ENDLESS = 256, 8       # of repeats inside repeats, multiplied; what an endless one counts
MOST_GROUPS = 24            # groups inside groups
MARKS = frozenset("|()[]{}*+?.^$")
CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
DIGIT, LETTER = chars((0x30, 0x39)), chars((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
# What is no digit (letter) is ASCII here: readers of patterns differ about digits (letters) of other scripts.
FOREIGN = (0x80, HIGHEST)
SETS = {"d": DIGIT, "w": LETTER, "s": chars((0x20, 0x20)), "D": others(chars(*DIGIT.ranges, FOREIGN)),
        "W": others(chars(*LETTER.ranges, FOREIGN))}
ANY = chars((0, 9), (0xB, 0xC), (0xE, 0x2027), (0x202A, HIGHEST))
# The values of `format`, somewhat narrower than their standards: every one of them is valid.
DATE = r"[12]\d{3}-((0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+\-]([01]\d|2[0-3]):[0-5]\d)"
HOST = r"[a-z0-9]{1,30}(-[a-z0-9]{1,30})?(\.[a-z0-9]{1,30}(-[a-z0-9]{1,30})?){0,3}\.[a-z]{2,20}"
BYTE = r"(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])"
FORMATS = {"date": f"^{DATE}$", "time": f"^{TIME}$", "date-time": f"^{DATE}T{TIME}$",
           "uuid": r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", "hostname": f"^{HOST}$",
           "email": rf"^[A-Za-z0-9]{{1,30}}([._+\-][A-Za-z0-9]{{1,30}}){{0,3}}@{HOST}$",
           "ipv4": rf"^({BYTE}\.){{3}}{BYTE}$",
           "uri": rf"^https?://{HOST}(:[1-9]\d{{1,3}})?(/[A-Za-z0-9._~\-]+)*/?(\?[A-Za-z0-9._~\-=&]*)?$"}


class _Piece(NamedTuple):
    expression: Expression
    weight: int = 1         # ways to be inside it at once, at most: the product of repeats inside one another
    empty: bool = False     # whether it may be empty


class Pattern:
    """One pattern, read from its start. `BadSchema` says what is not taken."""

    def __init__(self, text: str, where: str) -> None:
        self._text, self._where, self._at, self._depth = text, where, 1, 0
        if len(text) > MOST_PATTERN:
            self._refuse(f"is longer than {MOST_PATTERN} characters")
        if not (text.startswith("^") and text.endswith("$")):
            self._refuse("must be of the form ^…$")

    def expression(self) -> Expression:
        read = self._either()
        if self._at != len(self._text) - 1:
            self._refuse("has parentheses that do not match" if self._next == ")" else "has text behind its $")
        return read.expression

    @property
    def _next(self) -> str:
        """The next character; "" before the closing $."""
        return self._text[self._at] if self._at < len(self._text) - 1 else ""

    def _take(self) -> str:
        letter = self._next
        if not letter:
            self._refuse("ends too soon")
        self._at += 1
        return letter

    def _either(self) -> _Piece:
        parts = [self._row()]
        while self._next == "|":
            self._at += 1
            parts.append(self._row())
        if len(parts) == 1:
            return parts[0]
        return _Piece(Either(tuple(part.expression for part in parts)), max(part.weight for part in parts),
                      any(part.empty for part in parts))

    def _row(self) -> _Piece:
        parts: list[_Piece] = []
        while self._next and self._next not in "|)":
            parts.append(self._repeated(self._atom()))
        return _Piece(Row(tuple(part.expression for part in parts)), max((part.weight for part in parts), default=1),
                      all(part.empty for part in parts))

    def _repeated(self, piece: _Piece) -> _Piece:
        if not self._next or self._next not in "*+?{":
            return piece
        least, most = self._times()
        if self._next and self._next in "*+?{":
            self._refuse("has a repeat of a repeat")
        if piece.empty and (least, most) != (0, 1):
            self._refuse("repeats something that may be empty")
        weight = piece.weight * (ENDLESS if most is None else max(1, most))
        if piece.weight > 1 and weight > MOST_WEIGHT:
            self._refuse("has a repeat inside a repeat that could grow too large")
        return _Piece(Repeat(piece.expression, least, most), weight, piece.empty or least == 0)

    def _times(self) -> tuple[int, int | None]:
        mark = self._take()
        if mark != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[mark]
        words, end = self._text[self._at:].partition("}")[:2]
        low, comma, high = words.partition(",")
        if not end or not all(word.isascii() and word.isdigit() and len(word) < 8 for word in (low, high or "0")):
            self._refuse(f"has {{{words[:20]}, which is no number of repeats")
        self._at += len(words) + 1
        most = int(high) if high else None if comma else int(low)
        if max(int(low), most or 0) > MOST_REPEATS:
            self._refuse(f"repeats more than {MOST_REPEATS} times")
        if most is not None and most < int(low):
            self._refuse(f"has {{{words}}}, which allows nothing")
        return int(low), most

    def _atom(self) -> _Piece:
        letter = self._take()
        if letter == "(":
            return self._group()
        if letter == "[":
            return _Piece(self._set())
        if letter == ".":
            return _Piece(self._writable(ANY))
        if letter == "\\":
            found = self._escaped()
            return _Piece(self._writable(found) if isinstance(found, Chars) else Literal(as_json(found)[1:-1]))
        if letter in MARKS:
            self._refuse(f"has {letter!r} at {self._at - 1} where it is not supported")
        return _Piece(Literal(as_json(letter)[1:-1]))

    def _group(self) -> _Piece:
        self._depth += 1
        if self._depth > MOST_GROUPS:
            self._refuse(f"has more than {MOST_GROUPS} groups inside one another")
        if self._text.startswith("?:", self._at):
            self._at += 2
        inner = self._either()
        if self._next != ")":
            self._refuse("has parentheses that do not match")
        self._at += 1
        self._depth -= 1
        return inner

    def _escaped(self) -> str | Chars:
        letter = self._take()
        if letter in SETS:
            return SETS[letter]
        if letter in CONTROLS:
            return CONTROLS[letter]
        if letter.isalnum():
            self._refuse(f"has \\{letter}, which is not supported")
        return letter

    def _set(self) -> Chars:
        negated = self._next == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while self._next != "]":
            low = self._member()
            if isinstance(low, Chars):
                ranges += (*low.ranges, FOREIGN) if negated else low.ranges
                continue
            high: str | Chars = low
            if self._next == "-" and self._text[self._at + 1] != "]":
                self._at += 1
                high = self._member()
            if isinstance(high, Chars) or high < low:
                self._refuse("has a set with a range that is none")
            ranges.append((ord(low), ord(high)))
        self._at += 1
        return self._writable(others(chars(*ranges)) if negated else chars(*ranges))

    def _member(self) -> str | Chars:
        letter = self._take()
        return self._escaped() if letter == "\\" else letter

    def _writable(self, wanted: Chars) -> Chars:
        left = others(chars(*others(wanted).ranges, *UNWRITABLE.ranges))
        if not left.ranges:
            self._refuse("has a set without a character that can be written inside a JSON string")
        return left

    def _refuse(self, what: str) -> NoReturn:
        where = self._where if len(self._where) <= 100 else f"{self._where[:60]}…{self._where[-30:]}"
        raise BadSchema(f"{where} has a pattern that {what}: {self._text[:60]!r}; supported are ^…$ with plain "
                        "characters, sets, groups, alternatives and repeats", param="schema")
