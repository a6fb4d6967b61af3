"""What a frame asks: csps-llm's prefixes, read in one place (S4.7, S4.18).

`|NAME|…|/NAME|` may stand before the prompt, one after the other in any order, each at most once. The first closing
mark ends a prefix, so a text in one cannot hold it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from services.errors import BadRequest

PREFIXES = ("KEY", "SESSION", "CONTEXT", "CONTENT", "RAG")
_URN = "urn:uuid:"      # what csps-llm's session keys begin with


@dataclass(frozen=True)
class Asked:
    """A frame, read. None: not said."""

    prompt: str
    key: str | None = None
    session: str | None = None
    context: str | None = None              # to answer from
    content: str | None = None              # the same, from a clipboard
    rag: tuple[str, ...] | None = None      # domains in which to look


def parse(text: str) -> Asked:
    """The frame `text`. `BadRequest` for a prefix that is not closed, or there twice."""
    found: dict[str, str] = {}
    rest = text
    while name := next((name for name in PREFIXES if rest.startswith(f"|{name}|")), None):
        mark = f"|/{name}|"
        inner, closed, rest = rest[len(name) + 2:].partition(mark)
        if not closed:
            raise BadRequest(f"|{name}| is not closed: expected {mark} behind it", code="bad_frame")
        if name in found:
            raise BadRequest(f"|{name}| is there twice", code="bad_frame")
        found[name] = inner
        rest = rest.lstrip() if rest.lstrip().startswith("|") else rest
    domains = tuple(filter(None, map(str.strip, found["RAG"].split("|")))) if "RAG" in found else None
    session = found.get("SESSION")
    return Asked(rest.strip(), found.get("KEY"), session and session.strip().removeprefix(_URN),
                 found.get("CONTEXT"), found.get("CONTENT"), domains)


def key_of(text: str) -> str | None:
    """The key in a first frame that is `{"key": …}`; None for any other frame."""
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    key = value.get("key") if isinstance(value, dict) and len(value) == 1 else None
    return key if isinstance(key, str) else None
