"""The bodies and replies of `/knowledge`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from services.web.bodies import Body, Name, Text


class CrawlBody(Body):
    """Where to begin, and how far to go. Only pages of the same host are read."""

    url: str = Field(min_length=1, max_length=2048)
    max_depth: int | None = Field(None, ge=0, le=10, description="links from the first page; default: 2")
    max_pages: int | None = Field(None, ge=1, le=100_000, description="default: 50; at most KNOWLEDGE_MAX_PAGES")


class SourceBody(Body):
    """What to add: `text`, `url` or `crawl`, one of them. Files go to `/knowledge/<name>/files`."""

    text: Text | None = None
    title: Name | None = Field(None, description="of the text")
    url: str | None = Field(None, min_length=1, max_length=2048)
    crawl: CrawlBody | None = None


def _kind(value: object) -> str | None:
    return "list[str]" if isinstance(value, list) else "bool[]" if isinstance(value, bool) else None


Shared = Annotated[
    Annotated[bool, Tag("bool[]")] | Annotated[list[Name], Field(max_length=1000), Tag("list[str]")],
    Discriminator(_kind, custom_error_type="shared", custom_error_message="Input should be true, false, or a list of "
                                                                         "ids of keys")]


class KnowledgeBody(Body):
    """A new base."""

    name: str = Field(min_length=1, max_length=64, description="letters, digits, '-' and '_'")
    profile: Name | None = Field(None, description="an embedding profile; default: the first")
    chunk_tokens: int | None = Field(None, ge=16, le=1 << 16, description="of a chunk; default: 256, or what the "
                                                                          "model takes")
    shared: Shared | None = Field(None, description="true: with every key; or the ids of keys. For reading")
    refresh_seconds: int | None = Field(None, ge=60, le=366 * 86400, description="addresses are read again after so "
                                                                                 "long; default: never")


class KnowledgeChange(Body):
    """What is to be different."""

    shared: Shared | None = None
    refresh_seconds: int | None = Field(None, ge=0, le=366 * 86400, description="60 or more; 0: never")


class ReindexBody(Body):
    """With what to make the vectors anew."""

    profile: Name | None = Field(None, description="default: the one so far, with the model that it has now")
    chunk_tokens: int | None = Field(None, ge=16, le=1 << 16)


class FileQuery(Body):
    """Of a file that is sent as the body."""

    name: str | None = Field(None, max_length=500, description="the file's, for its kind and for citations")


class WeightsBody(Body):
    """How much each half of the search counts."""

    vector: float | None = Field(None, ge=0, le=100, description="default: 1; 0 leaves it out")
    words: float | None = Field(None, ge=0, le=100, description="default: 1; 0 leaves it out")


class SearchBody(Body):
    """What to look for."""

    query: Text
    top_k: int | None = Field(None, ge=1, le=50, description="default: 5")
    weights: WeightsBody | None = None


class KnowledgeBase(BaseModel):
    name: str = Field(description="`name@owner` for who is not its owner")
    owner: str
    created: str
    profile: str
    model: str = Field(description="the file of its embedding model")
    dimensions: int | None
    chunk_tokens: int
    shared: bool | list[str]
    refresh_seconds: int | None
    sources: int
    documents: int
    chunks: int
    characters: int
    pending: int = Field(description="sources that are queued or running")


class KnowledgeBases(BaseModel):
    bases: list[KnowledgeBase]


class KnowledgeSource(BaseModel):
    id: str
    kind: Literal["text", "file", "zip", "url", "crawl"]
    name: str
    state: Literal["queued", "running", "done", "error"]
    error: str | None = Field(description="why it failed, or what it waits for")
    next_try: str | None = Field(description="when it is tried again, where it waits; a refresh tries at once")
    problems: list[str] = Field(description="parts that were left out, and why")
    added: str
    updated: str
    documents: int
    indexed: int = Field(description="documents whose chunks are all there")
    chunks: int


class KnowledgeSources(BaseModel):
    sources: list[KnowledgeSource]


class KnowledgeDocument(BaseModel):
    id: int
    source: str
    title: str
    name: str = Field(description="its address, or the file's name")
    media_type: str
    chunks: int
    indexed: bool
    added: str


class KnowledgeDocuments(BaseModel):
    documents: list[KnowledgeDocument]


class WholeDocument(KnowledgeDocument):
    text: str


class Position(BaseModel):
    chunk: int = Field(description="from 0, in the document")
    start: int = Field(description="its first character in the document's text")


class KnowledgeHit(BaseModel):
    base: str
    document: int
    source: str
    title: str
    section: str = Field(description="the title and the headings that it stands under")
    name: str
    url: str | None
    position: Position
    score: float = Field(description="0 to 1; 1: the first by vectors and by words")
    similarity: float | None = Field(description="cosine to the query; null: found by words only")
    text: str


class KnowledgeHits(BaseModel):
    results: list[KnowledgeHit]
