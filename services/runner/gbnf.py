"""The words that a grammar is made of, those of JSON, and how llama.cpp reads them (GBNF, its grammars/README.md).

Our own recogniser (closing.py) and llama.cpp's are made from the same `Grammar`, so that they say the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TypeAlias

from services.errors import BadGrammar, BadSchema

HIGHEST = 0x10FFFF
HALVES = (0xD800, 0xDFFF)       # halves of surrogate pairs: no characters
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _.,:;{}()<>+*/=!?@#%&|~")


@dataclass(frozen=True)
class Literal:
    text: str


@dataclass(frozen=True)
class Chars:
    """One character, of code points in `ranges`: sorted, apart, ends included, no surrogates."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Call:
    """What the rule at this place of the grammar says."""

    rule: int


@dataclass(frozen=True)
class Row:
    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Either:
    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Repeat:
    part: Expression
    least: int
    most: int | None        # None: without end


Expression: TypeAlias = "Literal | Chars | Call | Row | Either | Repeat"


@dataclass(frozen=True)
class Grammar:
    rules: tuple[Expression, ...]
    root: int
    origin: str = "schema"              # the request's field that it was made from
    names: tuple[str, ...] = ()         # of the rules, where the client named them

    @property
    def text(self) -> str:
        """As llama.cpp reads it."""
        lines = (f"r{place} ::= {_text(rule)}" for place, rule in enumerate(self.rules))
        return "\n".join([f"root ::= r{self.root}", *lines])


    def refusal(self, what: str) -> BadSchema:
        """The error that says why a completion cannot be held to it: "the schema …"."""
        kind = BadGrammar if self.origin == "grammar" else BadSchema
        return kind(f"the {self.origin} {what}", param=self.origin)


def row(*parts: Expression | str) -> Row:
    return Row(tuple(Literal(part) if isinstance(part, str) else part for part in parts))


def either(*parts: Expression | str) -> Either:
    return Either(row(*parts).parts)


def maybe(*parts: Expression | str) -> Repeat:
    return Repeat(row(*parts), 0, 1)


def chars(*ranges: tuple[int, int]) -> Chars:
    """The characters of all ranges together, whatever their order."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        for first, last in ((low, min(high, HALVES[0] - 1)), (max(low, HALVES[1] + 1), high)):
            if first > last:
                continue
            if joined and first <= joined[-1][1] + 1:
                joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
            else:
                joined.append((first, last))
    return Chars(tuple(joined))


def others(than: Chars) -> Chars:
    """All characters but those."""
    ranges, low = [], 0
    for first, last in than.ranges:
        if low < first:
            ranges.append((low, first - 1))
        low = last + 1
    return chars(*ranges, *([(low, HIGHEST)] if low <= HIGHEST else []))


def size(expression: Expression) -> int:
    """About how many places a recogniser of it has."""
    if isinstance(expression, Literal):
        return len(expression.text) + 1
    if isinstance(expression, Chars):
        return 1 + sum(1 if high < 0x80 else 4 for _, high in expression.ranges)
    if isinstance(expression, Call):
        return 1
    if isinstance(expression, Repeat):
        return 1 + size(expression.part) + max(expression.least, expression.most or 0)
    return 1 + sum(map(size, expression.parts))


def _text(expression: Expression) -> str:
    if isinstance(expression, Literal):
        return '"' + "".join(map(_letter, expression.text)) + '"'
    if isinstance(expression, Chars):
        return "[" + "".join(_letter(chr(low)) + (f"-{_letter(chr(high))}" if high > low else "")
                             for low, high in expression.ranges) + "]"
    if isinstance(expression, Call):
        return f"r{expression.rule}"
    if isinstance(expression, Row):
        return "(" + " ".join(map(_text, expression.parts)) + ")" if expression.parts else '""'
    if isinstance(expression, Either):
        return "(" + " | ".join(map(_text, expression.parts)) + ")"
    if expression.most == 0:
        return '""'
    ends = (expression.least, expression.most)
    times = {(0, 1): "?", (0, None): "*", (1, None): "+"}.get(ends)
    return _text(expression.part) + (times or f"{{{ends[0]},{'' if ends[1] is None else ends[1]}}}")


def _letter(letter: str) -> str:
    code = ord(letter)
    if letter in PLAIN:
        return letter
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def as_json(value: object) -> str:
    """`value` as JSON that can be written in UTF-8."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


SPACE = maybe(" ")
COMMA, COLON = row(",", SPACE), row(":", SPACE)
UNWRITABLE = chars((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F))       # in a string as they stand
DIGIT = chars((0x30, 0x39))
HEX = chars((0x30, 0x39), (0x41, 0x46), (0x61, 0x66))
# One character of a JSON string: no raw control characters, and no escaped half of a surrogate pair.
CHAR = either(others(UNWRITABLE), row("\\", either(chars(*((ord(c), ord(c)) for c in '"\\/bfnrt')), row(
    "u", either(row(chars((0x30, 0x39), (0x41, 0x43), (0x45, 0x46), (0x61, 0x63), (0x65, 0x66)), HEX),
                row(chars((0x44, 0x44), (0x64, 0x64)), chars((0x30, 0x37)))), HEX, HEX))))
WHOLE = row(maybe("-"), either("0", row(chars((0x31, 0x39)), Repeat(DIGIT, 0, 15))))
# An exponent of two digits: no reader of the number meets infinity.
NUMBER = row(WHOLE, maybe(".", Repeat(DIGIT, 1, 16)), maybe(chars((0x45, 0x45), (0x65, 0x65)),
                                                            maybe(chars((0x2B, 0x2B), (0x2D, 0x2D))),
                                                            Repeat(DIGIT, 1, 2)))
BASIC: dict[str, Expression] = {"integer": WHOLE, "number": NUMBER, "boolean": either("true", "false"),
                                "null": Literal("null")}
