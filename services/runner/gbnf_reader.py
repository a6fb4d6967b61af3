"""GBNF text, as a client gives it → a grammar: llama.cpp's language (its grammars/README.md), within bounds.

Read into our own `Grammar`, so that what is held to it is closed in time as a value under a schema is. llama.cpp never
sees it: it may take minutes for a token. Line ends mean nothing here: a name before `::=` begins a rule.
"""

from __future__ import annotations

import re
from typing import NoReturn

from services.errors import BadGrammar
from services.runner.gbnf import (
    HALVES,
    HIGHEST,
    Call,
    Chars,
    Either,
    Expression,
    Grammar,
    Literal,
    Repeat,
    Row,
    chars,
    others,
    size,
)

MOST_BYTES = 64 * 1024
MOST_RULES = 1000
MOST_SIZE = 20_000          # of a grammar: about its letters, rules and repeats together
MOST_NESTED = 64            # groups inside groups
MOST_REPEATS = 512          # of one repeat
MOST_TIMES = 8              # repeats of one thing, each of the one before it
ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\\"\[\]])"
BLANK = r"(?:[ \t\r\n]|\#[^\r\n]*(?![^\r\n]))"     # a comment goes on to the line's end: it is read in one way only
WORD = re.compile(rf"""(?P<blank>{BLANK}+)
                    | (?P<define>[A-Za-z0-9_-]+(?={BLANK}*::=))
                    | (?P<name>[A-Za-z0-9_-]+) | (?P<is>::=)
                    | (?P<literal>"(?:[^"\\\r\n]|{ESCAPE})*") | (?P<set>\[(?:[^\]\\\r\n]|{ESCAPE})*\])
                    | (?P<mark>[|()*+?.]) | (?P<times>\{{[ \t]*\d{{1,9}}[ \t]*(?:,[ \t]*(?:\d{{1,9}})?[ \t]*)?\}})
                    """, re.VERBOSE)
LETTER = re.compile(rf"{ESCAPE}|[^\\]", re.DOTALL)
CONTROLS = {"t": "\t", "r": "\r", "n": "\n"}
ANY = chars((1, HIGHEST))               # no NUL: llama.cpp ends a text there
TIMES: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def grammar_from(text: str) -> Grammar:
    """The grammar that a text describes; its rule `root` is the start. `BadGrammar` says what is wrong where."""
    if len(text.encode("utf-8", "replace")) > MOST_BYTES:
        raise BadGrammar(f"the grammar is larger than {MOST_BYTES} bytes; make it smaller", param="grammar")
    return _Reader(text).grammar()


class _Reader:
    """One text, word by word."""

    def __init__(self, text: str) -> None:
        self._text, self._end, self._depth = text, 0, 0
        self._numbers: dict[str, int] = {}                  # of rules, in the order in which they are named
        self._rules: dict[int, Expression] = {}
        self._size = 0
        self._advance()

    def grammar(self) -> Grammar:
        while self._kind:
            self._rule()
        names = tuple(self._numbers)
        if "root" not in self._numbers:
            self._refuse("has no rule named root, where it begins")
        if missing := [name for name, number in self._numbers.items() if number not in self._rules]:
            self._refuse(f"uses the rule {missing[0]!r}, which it does not define")
        rules = tuple(self._rules[number] for number in range(len(names)))
        return Grammar(rules, self._numbers["root"], "grammar", names)

    # ------------------------------------------------------------ words

    def _advance(self) -> None:
        """Go to the next word; kind and word are "" behind the last."""
        self._begin = self._end
        while found := WORD.match(self._text, self._begin):
            self._end = found.end()
            self._kind, self._word = found.lastgroup or "", found.group()
            if self._kind != "blank":
                return
            self._begin = self._end
        if self._begin < len(self._text):
            self._refuse(f"cannot be read from {self._text[self._begin:self._begin + 20]!r} on")
        self._kind = self._word = ""

    def _take(self) -> str:
        word = self._word
        self._advance()
        return word

    def _number(self, name: str) -> int:
        if name not in self._numbers and len(self._numbers) >= MOST_RULES:
            self._refuse(f"has more than {MOST_RULES} rules")
        return self._numbers.setdefault(name, len(self._numbers))

    # ------------------------------------------------------------ rules

    def _rule(self) -> None:
        if self._kind != "define":
            self._refuse(f"has {self._word!r} where a rule should begin: name ::= …")
        name = self._take()
        number = self._number(name)
        if number in self._rules:
            self._refuse(f"defines the rule {name!r} twice")
        self._advance()
        self._rules[number] = self._either()

    def _either(self) -> Expression:
        parts = [self._row()]
        while self._word == "|":
            self._advance()
            parts.append(self._row())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _row(self) -> Expression:
        parts = []
        while self._kind in ("literal", "set", "name") or self._word in ("(", "."):
            part, times = self._atom(), 0
            while self._kind == "times" or self._word in TIMES:
                part, times = self._repeat(part), times + 1
                if times > MOST_TIMES:
                    self._refuse(f"repeats one thing in more than {MOST_TIMES} ways at once")
            self._size += size(part)
            if self._size > MOST_SIZE:
                self._refuse("is too large; use fewer alternatives and shorter repeats")
            parts.append(part)
        return Row(tuple(parts))

    def _atom(self) -> Expression:
        if self._kind == "literal":
            return Literal("".join(map(self._letter, LETTER.findall(self._take()[1:-1]))))
        if self._kind == "set":
            return self._set(self._take()[1:-1])
        if self._kind == "name":
            return Call(self._number(self._take()))
        return ANY if self._take() == "." else self._group()

    def _group(self) -> Expression:
        self._depth += 1
        if self._depth > MOST_NESTED:
            self._refuse(f"has more than {MOST_NESTED} groups inside one another")
        inner = self._either()
        if self._word != ")":
            self._refuse("has a group that is not closed")
        self._advance()
        self._depth -= 1
        return Row((inner,))

    def _repeat(self, part: Expression) -> Expression:
        word = self._take()
        if word in TIMES:
            least, most = TIMES[word]
        else:
            low, comma, high = (text.strip() for text in word[1:-1].partition(","))
            least, most = int(low), int(high) if high else None if comma else int(low)
        if max(least, most or 0) > MOST_REPEATS:
            self._refuse(f"repeats more than {MOST_REPEATS} times: {word}")
        if most is not None and most < least:
            self._refuse(f"has {word}, which allows nothing")
        return Repeat(part, least, most)

    # ------------------------------------------------------------ characters

    def _set(self, text: str) -> Chars:
        negated = text.startswith("^")
        letters = LETTER.findall(text[negated:])
        ranges, at = [], 0
        while at < len(letters):
            low = high = _code(letters[at])
            if letters[at + 1:at + 2] == ["-"] and at + 2 < len(letters):
                high = _code(letters[at + 2])
                at += 2
            if high < low:
                self._refuse(f"has the set [{text}] with a range that is none")
            ranges.append((low, high))
            at += 1
        wanted = others(chars(*ranges)) if negated else chars(*ranges)
        if not (kept := others(chars(*others(wanted).ranges, (0, 0)))).ranges:
            self._refuse(f"has the set [{text}] without a character")
        return kept

    def _letter(self, spelled: str) -> str:
        code = _code(spelled)
        if not 0 < code <= HIGHEST or HALVES[0] <= code <= HALVES[1]:
            self._refuse(f"has {spelled!a}, which is no character that a text may have")
        return chr(code)

    def _refuse(self, what: str) -> NoReturn:
        line = self._text.count("\n", 0, self._begin) + 1
        raise BadGrammar(f"the grammar {what[:200]} (near line {line})", param="grammar")


def _code(spelled: str) -> int:
    """The number of a character, which may be a half of a pair or none at all."""
    if not spelled.startswith("\\"):
        return ord(spelled)
    return int(spelled[2:], 16) if spelled[1] in "xuU" else ord(CONTROLS.get(spelled[1], spelled[1]))
