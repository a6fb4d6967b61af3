"""A Go template as tokens: runs of text, and what stands between `{{` and `}}`. The rules are text/template/parse's."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from services.chat.gotemplate.faults import Fault

SPACE = " \t\r\n"
_TOKEN = re.compile(r"""
      (?P<close>[ \t\r\n]+-\}\}|\}\})
    | (?P<space>[ \t\r\n]+)
    | (?P<string>"(?:[^"\\\n]|\\[^\n])*")
    | (?P<raw>`[^`]*`)
    | (?P<char>'(?:[^'\\\n]|\\[^\n])+')
    | (?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![\w.]))
    | (?P<variable>\$\w*)
    | (?P<field>\.[^\W\d]\w*)
    | (?P<dot>\.)
    | (?P<word>[^\W\d]\w*)
    | (?P<mark>:=|=|\||\(|\)|,)
""", re.VERBOSE)
_COMMENT = re.compile(r"/\*.*?\*/(?P<close>[ \t\r\n]+-\}\}|\}\})", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_NAMED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'"}


class Token(NamedTuple):
    """`kind`: text, open, close, value, variable, field, dot, word or mark. `value`: of a literal; else as written."""

    kind: str
    value: Any
    line: int
    spaced: bool = False        # white space stands before it, which tells `.A.B` from `.A .B`


def tokens(source: str) -> Iterator[Token]:
    """All of `source`, with what the trim markers `{{-` and `-}}` take away already gone."""
    at, line, trim = 0, 1, False
    while True:
        start = source.find("{{", at)
        text = source[at:] if start < 0 else source[at:start]
        yield from _text(text, line, trim, start >= 0 and _trims(source, start))
        if start < 0:
            return
        line += text.count("\n")
        end, trim = yield from _action(source, start, line)
        line += source.count("\n", start, end)
        at = end


def _trims(source: str, start: int) -> bool:
    """Whether `{{-` and white space stand at `start`; `{{-3}}` is a number."""
    return source[start + 2:start + 3] == "-" and source[start + 3:start + 4] in tuple(SPACE)


def _text(text: str, line: int, left: bool, right: bool) -> Iterator[Token]:
    text = text.lstrip(SPACE) if left else text
    text = text.rstrip(SPACE) if right else text
    if text:
        yield Token("text", text, line)


def _action(source: str, start: int, line: int) -> Generator[Token, None, tuple[int, bool]]:
    """The tokens of the action at `start`; returns where it ends, and whether it trims what follows."""
    at = start + 2 + (2 if _trims(source, start) else 0)
    if source.startswith("/*", at):
        comment = _COMMENT.match(source, at)
        if comment is None:
            raise Fault(line, "a comment does not end; expected */}}")
        return comment.end(), "-" in comment["close"]
    yield Token("open", "{{", line)
    first, spaced = line, False
    while match := _TOKEN.match(source, at):
        kind, text = match.lastgroup or "", match.group()
        if kind == "close":
            yield Token("close", text, line, spaced)
            return match.end(), text != "}}"
        if kind != "space":
            yield _token(kind, text, line, spaced)
        spaced = kind == "space"
        line += text.count("\n")
        at = match.end()
    if at >= len(source):
        raise Fault(first, "an action does not end; expected }}")
    raise Fault(line, f"{source[at:at + 20]!r} cannot be read")


def _token(kind: str, text: str, line: int, spaced: bool) -> Token:
    if kind == "string":
        return Token("value", _unquoted(text[1:-1], line), line, spaced)
    if kind == "raw":
        return Token("value", text[1:-1], line, spaced)
    if kind == "char":
        char = _unquoted(text[1:-1], line)
        if len(char) != 1:
            raise Fault(line, f"{text[:20]} is no single character; texts stand in double quotes")
        return Token("value", ord(char), line, spaced)
    if kind == "number":
        return Token("value", _number(text, line), line, spaced)
    if kind == "word" and text in ("true", "false", "nil"):
        return Token("value", json.loads(text.replace("nil", "null")), line, spaced)
    return Token(kind, text, line, spaced)


def _number(text: str, line: int) -> int | float:
    if re.fullmatch(r"[+-]?\d+", text):
        value = int(text, 8 if re.fullmatch(r"[+-]?0[0-7]+", text) else 10) if len(text) < 25 else 1 << 64
    elif "x" in text.lower():
        value = int(text[:25], 16)
    else:
        return float(text)
    if value.bit_length() > 63:
        raise Fault(line, f"{text[:30]} is too large a number")
    return value


def _unquoted(text: str, line: int) -> str:
    def one(match: re.Match[str]) -> str:
        escape = match.group()[1:]
        if escape in _NAMED:
            return _NAMED[escape]
        digits = escape.lstrip("xuU") if escape[0] in "xuU" else escape
        if len(escape) < 3 or (code := int(digits, 8 if escape[0] in "01234567" else 16)) > 0x10FFFF \
                or 0xD800 <= code < 0xE000:
            raise Fault(line, f"\\{escape} is no escape of Go's")
        return chr(code)
    return _ESCAPE.sub(one, text)
