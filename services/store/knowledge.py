"""The contract of a store of knowledge bases: sources, the documents that came from them, and their chunks.

A base is a `Collection`, named by its owner (a key's id) and a name. All of it but numbers, states and times is the
owner's text; a back-end that is given a cipher seals it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from services.errors import BadRequest, Conflict, NotFound
from services.store.base import is_owner

SCHEMA = 1                          # raised when older programs would misread what newer ones write
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
QUEUED, RUNNING, DONE, ERROR = "queued", "running", "done", "error"


@dataclass(frozen=True)
class Source:
    """What a base was given: a text, a file, a zip, an address, or where to begin to crawl."""

    id: str
    kind: str                       # text | file | zip | url | crawl
    name: str                       # of the file, the title, or the address
    options: dict[str, Any] = field(default_factory=dict)
    state: str = QUEUED             # queued | running | done | error
    task: str = "read"              # what is to be done: "read" it, "index" its documents, or "" nothing
    error: str | None = None        # of state error: why
    problems: tuple[str, ...] = ()  # what was left out, and why, though the rest was taken
    added: str = ""
    updated: str = ""
    checked: float = 0.0            # unix time at which it was last read, for refreshing
    tries: int = 0                  # that failed, one after the other, since something was not to be had
    next_try: float = 0.0           # unix time of the one after them; 0: none of them did

    def without_chunks(self, documents: bool) -> Source:
        """It, once the chunks of its `documents` were dropped, if it has any. What could not be read is not read
        again, since what was sent is not kept; but what it has of an earlier time is indexed."""
        unread = self.state == ERROR and self.task == "read"
        if unread and not documents:
            return self
        problems = (*self.problems, self.error) if unread and self.error else self.problems
        return replace(self, state=QUEUED, task="index" if unread else self.task or "index", error=None,
                       problems=problems, tries=0, next_try=0.0)


@dataclass(frozen=True)
class Document:
    """One text of a source. `id` is 0 until it is stored."""

    title: str
    name: str                       # address, or the file's name
    text: str
    source: str = ""
    media_type: str = "text/plain"
    sections: tuple[tuple[str, int, int], ...] = ()     # title, first character and end of each, in order
    id: int = 0
    chunks: int = 0
    indexed: bool = False           # its chunks are all there
    added: str = ""


@dataclass(frozen=True)
class Chunk:
    """A part of a document, and its vector: little-endian float32, of length 1."""

    number: int                     # from 0, in the document
    start: int                      # its first character in the document's text
    title: str                      # of the document, and the headings it stands under
    text: str
    vector: bytes


@dataclass(frozen=True)
class Passage:
    """A chunk as search finds it."""

    id: int
    document: int
    number: int
    start: int
    title: str
    text: str
    document_title: str
    name: str
    source: str


@dataclass(frozen=True)
class Size:
    """How much there is."""

    sources: int = 0
    documents: int = 0
    chunks: int = 0
    characters: int = 0             # of all documents
    pending: int = 0                # sources that are queued or running


class Collection(ABC):
    """One base. Safe to share between threads; several processes may use the same one at once.

    Every method raises `NotFound` when the base was deleted meanwhile, and `StorageFull` or `Unavailable`.
    """

    owner: str
    name: str

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What its maker wrote down about it."""

    @abstractmethod
    def describe(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Replace that by what `change` makes of it, in one step."""

    @abstractmethod
    def size(self) -> Size: ...

    # ------------------------------------------------------------ sources

    @abstractmethod
    def add_source(self, source: Source, payload: bytes | None = None) -> None:
        """Durable on return. `payload`: the bytes that are to be read."""

    @abstractmethod
    def update_source(self, source: Source, keep_payload: bool = True) -> bool:
        """Replace the source of this id; False when it is gone. `keep_payload` False: its bytes are not needed."""

    @abstractmethod
    def sources(self, id: str | None = None) -> list[Source]:
        """All, or the one, in the order in which they were added."""

    @abstractmethod
    def payload(self, source: str) -> bytes | None: ...

    @abstractmethod
    def delete_source(self, source: str) -> None:
        """With its documents. `NotFound`."""

    # ------------------------------------------------------------ documents

    @abstractmethod
    def put_document(self, document: Document) -> int:
        """Its id. One of the same source and name is replaced, with its chunks; nothing happens when its text and title
        are the same. 0 when the source is gone."""

    @abstractmethod
    def documents(self, source: str | None = None) -> list[Document]:
        """Without their texts, in the order in which they were added."""

    @abstractmethod
    def document(self, id: int) -> Document:
        """With its text. `NotFound`."""

    @abstractmethod
    def delete_document(self, id: int) -> None:
        """`NotFound`."""

    @abstractmethod
    def to_index(self, source: str) -> list[int]:
        """The documents whose chunks are not all there."""

    @abstractmethod
    def unindexed(self) -> set[str]:
        """The sources that have such documents."""

    @abstractmethod
    def put_chunks(self, document: int, chunks: Sequence[Chunk], expected: dict[str, Any] | None = None) -> bool:
        """The document's chunks: it is indexed now. False when it is gone, or `about` does not say what is `expected`
        any more."""

    @abstractmethod
    def forget_chunks(self, about: dict[str, Any]) -> None:
        """Drop all chunks and replace `about`, in one step: every document is to be indexed anew, every source too."""

    # ------------------------------------------------------------ search

    @abstractmethod
    def near(self, vector: bytes, k: int) -> list[tuple[int, float]]:
        """(chunk, cosine) of the k nearest, the nearest first."""

    @abstractmethod
    def matching(self, words: Sequence[str], k: int) -> list[tuple[int, float]]:
        """(chunk, share) of the k that match the words best, the best first: how much of the words a chunk has, 0 to 1,
        the rare ones counting more. A word with several parts (`AB-12`) is a phrase."""

    @abstractmethod
    def passages(self, ids: Iterable[int]) -> list[Passage]:
        """The chunks of these ids in their order; those that are gone are left out."""

    @abstractmethod
    def held(self) -> AbstractContextManager[bool]:
        """Whether this process works on the sources for the time of the block: one at most does, on all machines."""


class Library(ABC):
    """All bases."""

    @abstractmethod
    def create(self, owner: str, name: str, about: dict[str, Any]) -> Collection:
        """`Conflict` when there is one."""

    @abstractmethod
    def open(self, owner: str, name: str) -> Collection:
        """`NotFound`."""

    @abstractmethod
    def delete(self, owner: str, name: str) -> None:
        """`NotFound`."""

    @abstractmethod
    def names(self) -> list[tuple[str, str]]:
        """(owner, name) of all, in order."""


def is_name(text: str) -> bool:
    """Whether `text` may name a base: letters, digits, "-" and "_", 64 at most."""
    return bool(_NAME.fullmatch(text))


def check_names(owner: str, name: str) -> None:
    """The last guard before a name becomes part of a path."""
    if not is_owner(owner):
        raise BadRequest(f"{owner[:80]!r} cannot be the id of a key, to which bases belong", code="bad_name")
    if not is_name(name):
        raise BadRequest(f"{name[:80]!r} cannot be the name of a knowledge base: use letters, digits, - and _, at most "
                         "64 of them", code="bad_name", param="name")


def not_found(name: str) -> NotFound:
    """The same words for a base that is not there and for one of somebody else."""
    return NotFound(f"there is no knowledge base {name[:80]}", code="knowledge_not_found", param="knowledge")


def exists(name: str) -> Conflict:
    return Conflict(f"you have a knowledge base {name} already", code="knowledge_exists", param="name")


def no_document(id: int | str) -> NotFound:
    return NotFound(f"there is no document {str(id)[:80]} in this base", code="document_not_found", param="document_id")


def no_source(id: str) -> NotFound:
    return NotFound(f"there is no source {id[:80]} in this base", code="source_not_found", param="source_id")
