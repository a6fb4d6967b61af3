"""XML by expat, piece by piece: no tree, no document types, no entities but its own five, no deep nesting."""

from __future__ import annotations

from typing import NoReturn
from xml.parsers import expat

from services.knowledge.documents import Document
from services.knowledge.readers.building import Builder, Unreadable
from services.knowledge.readers.text import decoded

DEEPEST = 256
Attributes = dict[str, str]


class Handler:
    """What is told of a document. Names come without their namespace."""

    def start(self, name: str, attributes: Attributes) -> None:
        """An element begins."""

    def end(self, name: str) -> None:
        """An element ends."""

    def text(self, text: str) -> None:
        """Text within an element, maybe not all of it."""


def walk(data: bytes, handler: Handler) -> None:
    """Tell `handler` what is in `data`. Raises `Unreadable`."""
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    depth = 0

    def start(name: str, attributes: Attributes) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise Unreadable(f"its XML is nested deeper than {DEEPEST}")
        handler.start(_local(name), {_local(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        handler.end(_local(name))

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = handler.text
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise Unreadable(f"its XML is damaged ({error})") from None


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


def _refuse(*_: object) -> NoReturn:
    raise Unreadable("its XML has a document type (<!DOCTYPE), which could define entities; it is not read")


class _All(Handler):
    def __init__(self) -> None:
        self.pieces: list[str] = []

    def text(self, text: str) -> None:
        self.pieces.append(text)

    def end(self, name: str) -> None:
        self.pieces.append("\n")


def read(data: bytes, charset: str | None, name: str, kind: str) -> Document:
    """Any XML: the text of its elements."""
    text = decoded(data, charset)
    if text.lstrip().startswith("<?xml"):
        text = text.partition("?>")[2]
    everything = _All()
    walk(text.strip().encode("utf-8", "replace"), everything)
    builder = Builder(name, kind)
    builder.add("".join(everything.pieces))
    return builder.document()
