"""YAML that people and galleries write, as plain values with the line of every key, or one `ConfigError`.

Read from the parser's events, since PyYAML's own loaders nest without bound (its C one ends the process), copy what
anchors name as often as it is merged, and take the last of two equal keys. Scalars are YAML 1.2's core schema, as in
Go: `yes` and `12:30` are texts. So are more than 20 digits, which may be a checksum. Keys are texts. Anchors, aliases
and merge keys (`<<`) work, and are counted as what they stand for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from services.errors import ConfigError
from services.store import disk

MAX_BYTES = 256 << 10       # of a model's file
MAX_DEPTH = 32
PER_BYTE = 2                # values that a text may hold for each of its bytes, with all aliases counted ...
SPARE = 10_000              # ... beside so many
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PREFIX = "tag:yaml.org,2002:"
_PLAIN: dict[str, re.Pattern[str]] = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]{1,20}|0x[0-9a-fA-F]{1,16}|0o[0-7]{1,21}"),
    "float": re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]{1,20}(?=[eE]))(?:[eE][-+]?[0-9]{1,4})?"),
}
Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A YAML document as read: its value, and the line (from 1) of each key's and item's path."""

    where: str              # folder and name of the file, for messages
    value: Any
    lines: dict[Key, int]

    def at(self, *path: str | int) -> str:
        """The file, with the line of the deepest part of `path` that it has."""
        known = next((path[:size] for size in range(len(path), 0, -1) if path[:size] in self.lines), None)
        return f"{self.where}, line {self.lines[known]}" if known else self.where

    def error(self, message: str, *path: str | int) -> ConfigError:
        return ConfigError(f"{self.at(*path)}: {message}")


def read(path: Path, max_bytes: int = MAX_BYTES) -> Document:
    """The document in `path`, which is no link. Raises `ConfigError` naming file and line."""
    return parse(read_text(path, max_bytes), shown(path))


def shown(path: Path) -> str:
    """`models/name.yaml`: enough to find the file, without the machine's folders."""
    return f"{path.parent.name}/{path.name}"


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """UTF-8 text. Raises `ConfigError`."""
    try:
        fd = disk.open_file(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            if size > max_bytes:
                raise ConfigError(f"{shown(path)}: has {size} bytes; at most {max_bytes} are read")
            return disk.read_fd(fd, path, size).decode("utf-8")
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"{shown(path)}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{shown(path)}: not UTF-8 text; save it as UTF-8") from None


def parse(text: str, where: str) -> Document:
    """The one document in `text`. Raises `ConfigError` with `where` and line."""
    reader = _Reader(text, where)
    try:
        value = reader.document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {str(error).splitlines()[0][:200]}") from None
    return Document(where, value, reader.lines)


class _Reader:
    """Builds values from events. `count` is how many there are, each alias with all that it stands for."""

    def __init__(self, text: str, where: str) -> None:
        self.events: Iterator[Event] = yaml.parse(text, Loader=_LOADER)
        self.where = where
        self.most = PER_BYTE * len(text) + SPARE
        self.count = 0
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.lines: dict[Key, int] = {}

    def fail(self, event: Event, message: str) -> NoReturn:
        raise ConfigError(f"{self.where}, line {event.start_mark.line + 1}: {message}")

    def document(self) -> Any:
        """None for an empty text."""
        value, documents = None, 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.fail(event, "a second document begins; expected one")
            elif not isinstance(event, StreamStartEvent | StreamEndEvent | DocumentEndEvent):
                value = self.value(event, ())
        return value

    def value(self, event: Event, path: Key) -> Any:
        if len(path) > MAX_DEPTH:
            self.fail(event, "nested too deeply")
        if isinstance(event, AliasEvent):
            if event.anchor not in self.anchors:
                self.fail(event, f"*{event.anchor} is the name of nothing before it")
            value, size = self.anchors[event.anchor]
            self.add(event, size)
            return value
        before = self.count
        self.add(event, 1)
        self.known(event)
        if isinstance(event, ScalarEvent):
            value = self.scalar(event)
        elif isinstance(event, SequenceStartEvent):
            value = self.items(path)
        else:
            assert isinstance(event, MappingStartEvent)
            value = self.mapping(path)
        if event.anchor:
            self.anchors[event.anchor] = value, self.count - before
        return value

    def add(self, event: Event, values: int) -> None:
        self.count += values
        if self.count > self.most:
            self.fail(event, "aliases make more of the file than can be")

    def items(self, path: Key) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            here = (*path, len(found))
            self.lines[here] = event.start_mark.line + 1
            found.append(self.value(event, here))
        return found

    def mapping(self, path: Key) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                self.fail(event, "a key must be a text")
            key = str(event.value)
            if key == "<<" and not event.style:
                self.merge(merged, next(self.events), path)
                continue
            if key in own:
                self.fail(event, f"{key[:80]!a} is given twice")
            here = (*path, key)
            self.lines[here] = event.start_mark.line + 1
            own[key] = self.value(next(self.events), here)
        return {**merged, **own}

    def merge(self, merged: dict[str, Any], event: Event, path: Key) -> None:
        """What `<<` names; the first of several that has a key wins."""
        source = self.value(event, (*path, "<<"))
        for each in source if isinstance(source, list) else [source]:
            if not isinstance(each, dict):
                self.fail(event, "<< takes a mapping, or a list of them")
            for key, value in each.items():
                merged.setdefault(key, value)

    def known(self, event: Event) -> None:
        tag = str(event.tag or "!").removeprefix(_PREFIX)
        kinds = ("str", *_PLAIN) if isinstance(event, ScalarEvent) else ("seq", "map")
        if tag not in ("!", *kinds):
            self.fail(event, f"the tag {tag[:40]!r} is not known")

    def scalar(self, event: ScalarEvent) -> Any:
        text, tag = str(event.value), event.tag
        if tag and tag != "!":
            return self.tagged(event, text, tag.removeprefix(_PREFIX))
        if tag == "!" or event.style:
            return text
        return next((_made(kind, text) for kind, pattern in _PLAIN.items() if pattern.fullmatch(text)), text)

    def tagged(self, event: ScalarEvent, text: str, kind: str) -> Any:
        if kind == "str":
            return text
        if not (_PLAIN[kind].fullmatch(text) or (kind == "float" and _PLAIN["int"].fullmatch(text))):
            self.fail(event, f"{text[:40]!a} is no !!{kind}")
        return _made(kind, text)


class _Dumper(yaml.SafeDumper):
    """Quotes what `parse` would not take for a text, and writes several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    special = any(pattern.fullmatch(text) for pattern in _PLAIN.values())
    style = '"' if special else "|" if "\n" in text else None
    return dumper.represent_scalar(_PREFIX + "str", text, style=style)


_Dumper.add_representer(str, _text)


def dump(value: Any) -> str:
    """`value` as YAML that `parse` reads as it is."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def _made(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "float":
        return float(text)
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
