"""Reading what people configure: bytes to values with the line of every key, or one `ConfigError` with file and line.

Row C1. The file is a person's: a link to it is followed, but nothing that is no regular file is opened to be read, and
nothing is read that is longer than a configuration can be. Writing is `services.store.disk`'s.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from services.errors import ConfigError
from services.store import disk

MAX_BYTES = 1 << 20         # of a config.json
Signature = tuple[int, int, int]        # mtime_ns, size, inode: differs when the file was written again

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]')
_COLON = re.compile(r"\s*:")


@dataclass(frozen=True)
class Document:
    """A JSON object as read: its values in the file's order, and the line (from 1) of each key's path."""

    where: str              # folder and name of the file, for messages
    text: str
    values: dict[str, Any]
    lines: dict[tuple[str, ...], int]
    mode: int               # permission bits of the file

    def error(self, message: str, *path: str) -> ConfigError:
        """`message` with the file and the line of the deepest key of `path` that the file has."""
        known = next((path[:size] for size in range(len(path), 0, -1) if path[:size] in self.lines), None)
        line = f", line {self.lines[known]}" if known else ""
        return ConfigError(f"{self.where}{line}: {message}")


def shown(path: Path) -> str:
    """`data/config.json`: enough to find the file, without the machine's folders."""
    return f"{path.parent.name}/{path.name}"


def signature(path: Path) -> Signature | None:
    """What changes when the file is saved again; None when there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read(path: Path, holds: str = "SelectedModel and profiles") -> Document:
    """The document in `path`, an object that `holds` something. Raises `ConfigError` naming file, line and column."""
    where = shown(path)
    raw, mode = _read_bytes(path, where)
    if raw.startswith(b"\xef\xbb\xbf"):
        raise ConfigError(f"{where}, line 1: starts with a byte order mark; save it as UTF-8 without one")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{where}, line {line}: not UTF-8 text; save it as UTF-8") from None
    if not text.strip():
        raise ConfigError(f"{where}: empty; expected a JSON object with {holds}, or no such file")
    values = _parse(text, where, holds)
    return Document(where, text, values, _lines(text, where), mode)


def _read_bytes(path: Path, where: str) -> tuple[bytes, int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file; it is made at the first start in an empty data folder") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{where}: not a regular file")
        if status.st_size > MAX_BYTES:
            raise ConfigError(f"{where}: has {status.st_size} bytes; a configuration has at most {MAX_BYTES}")
        return disk.read_fd(fd, path, status.st_size), stat.S_IMODE(status.st_mode)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)


def _parse(text: str, where: str, holds: str) -> dict[str, Any]:
    def refuse(literal: str) -> NoReturn:
        line = text.count("\n", 0, text.find(literal)) + 1
        raise ConfigError(f"{where}, line {line}: {literal} is not a JSON number")
    try:
        values = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        hint = ", which has no comments" if text.startswith(("//", "/*", "#"), error.pos) else ""
        raise ConfigError(f"{where}, line {error.lineno} column {error.colno}: not JSON{hint}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "holds a number with too many digits"
        raise ConfigError(f"{where}: {reason}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}, line 1: expected a JSON object with {holds}")
    return values


def _lines(text: str, where: str) -> dict[tuple[str, ...], int]:
    lines: dict[tuple[str, ...], int] = {}
    for path, line, again in _keys(text):
        if again:
            raise ConfigError(f"{where}, line {line}: {path[-1][:80]!a} is given twice")
        lines.setdefault(path, line)
    return lines


def _keys(text: str) -> Iterator[tuple[tuple[str, ...], int, bool]]:
    """(path, line, given before in the same object) of each key in `text`, which is valid JSON."""
    line, counted = 1, 0
    names: list[str] = []               # the current key of each open object, "" in a list
    seen: list[set[str]] = []           # the keys so far of each open object
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in "{[":
            names.append("")
            seen.append(set())
        elif token in "}]":
            names.pop()
            seen.pop()
        elif _COLON.match(text, match.end()):
            line += text.count("\n", counted, match.start())
            counted = match.start()
            names[-1] = json.loads(token)
            yield tuple(names), line, names[-1] in seen[-1]
            seen[-1].add(names[-1])
