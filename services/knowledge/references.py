"""What answers are grounded in: texts with what is told of where they are from, and how they get into a prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.knowledge.documents import Document, most, quoted
from services.knowledge.search import Hit

MOST_CITED = 8                  # texts that one answer is given, unless it asks for more or fewer
_CITED = re.compile(r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")


@dataclass(frozen=True)
class Reference:
    """A text to answer from. `citation`: base, document, source, title, section, name, url, position, score,
    similarity; None where there is no such thing."""

    document: Document
    citation: dict[str, Any]

    @classmethod
    def of_hit(cls, hit: Hit) -> Reference:
        """A passage of a knowledge base."""
        citation = hit.shown()
        text = citation.pop("text")
        return cls(Document(hit.passage.title, text, hit.passage.name, "text/plain"), citation)

    @classmethod
    def of_document(cls, document: Document, url: str | None) -> Reference:
        """What was found elsewhere."""
        of_base = dict.fromkeys(("base", "document", "source", "section", "position", "score", "similarity"))
        return cls(document, {**of_base, "title": document.title, "name": document.source, "url": url})


@dataclass(frozen=True)
class Grounds:
    """References in a prompt. `text` is a block of quotations, numbered [1], [2] …; each citation has its number
    `n`."""

    text: str = ""
    citations: tuple[dict[str, Any], ...] = ()


def fitted(references: Sequence[Reference], budget: int, measure: Callable[[str], int] = len) -> Grounds:
    """The first of the references, as many as have room whole in `budget` of `measure` (characters, or a counter of
    tokens); the first one is cut where even that has none."""
    documents = [reference.document for reference in references]
    count = most(len(documents), lambda count: measure(quoted(documents[:count], 1 << 30)) <= budget)
    text = quoted(documents[:count], 1 << 30) if count else quoted(documents[:1], budget, measure)
    used = references[:max(count, 1)] if text else ()
    return Grounds(text, tuple({"n": n, **reference.citation} for n, reference in enumerate(used, 1)))


def with_use(citations: Sequence[dict[str, Any]], answer: str) -> list[dict[str, Any]]:
    """The citations, each with whether the text of the answer names its number (`cited`)."""
    named = {int(number) for found in _CITED.findall(answer) for number in found.split(",")}
    return [{**citation, "cited": citation["n"] in named} for citation in citations]
