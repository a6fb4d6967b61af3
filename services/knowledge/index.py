"""Documents to chunks with vectors, by an embedding model whose identity the base remembers."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from services.engine.client import Engine, Lease
from services.errors import Conflict, ContextOverflow, NotFound
from services.knowledge import split
from services.store.knowledge import Chunk, Document
from services.wire import Embed, RunnerSpec

PORTION = 32                # texts that a runner is sent at once: others' come in between
SPARE = 0.9                 # of a query's share that a model can read: its parts differ in how many tokens they make
SAMPLE = 1 << 20            # bytes of a model file's beginning and end by which it is known


@dataclass(frozen=True)
class Model:
    """An embedding profile, as configured now."""

    profile: str
    spec: RunnerSpec
    keep: float = 0.0       # seconds that it stays loaded without use
    document_prefix: str = ""       # what the model wants before a text to be found, and before one to find it with
    query_prefix: str = ""


@dataclass(frozen=True)
class About:
    """What a base says of itself."""

    created: str
    profile: str                            # whose model makes its vectors
    model: str                              # the file's name
    fingerprint: str                        # and what tells it from others
    chunk_tokens: int
    dimensions: int = 0                     # of the vectors; 0: none was made yet
    shared: bool | list[str] = False        # True: with every key; else with these
    refresh_seconds: int | None = None      # addresses are read again after so long
    system: str = ""                        # the system text of who answers from it, where its maker says one

    @classmethod
    def of(cls, stored: dict[str, Any]) -> About:
        return cls(**stored)


class Embedder:
    """A leased model. `beat` is called now and then and may raise to end the work."""

    def __init__(self, model: Model, lease: Lease, owner: str, charge: Callable[[str, int], None],
                 beat: Callable[[], None]) -> None:
        self._model, self._lease, self._owner, self._charge, self._beat = model, lease, owner, charge, beat
        self.model, self.dimensions, self.n_ctx = lease.ready.model, lease.ready.n_embd, lease.ready.n_ctx

    def count(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text of a document, with those around it."""
        self._beat()
        return self._lease.count([[self._model.document_prefix + text] for text in texts]) if texts else []

    def query(self, text: str) -> bytes:
        """The vector to search with. What is longer than the model takes is read at its two ends, where questions
        stand."""
        while True:
            try:
                return self._embed([self._model.query_prefix + text])[0]
            except ContextOverflow as error:
                part = error.details["limit"] / error.details["prompt_tokens"] * SPARE
                half = int(len(text) * part) // 2
                if not half:
                    raise
                text = f"{text[:half]} {text[-half:]}"

    def documents(self, texts: Sequence[str]) -> list[bytes]:
        """The vectors of texts to be found."""
        return self._embed([self._model.document_prefix + text for text in texts])

    def _embed(self, texts: Sequence[str]) -> list[bytes]:
        vectors: list[bytes] = []
        for start in range(0, len(texts), PORTION):
            self._beat()
            answer = self._lease.embed(Embed(id=str(uuid.uuid4()), owner=self._owner,
                                             texts=list(texts[start:start + PORTION])))
            self._charge(self._owner, sum(answer.tokens))
            vectors += answer.vectors
        return vectors


class Indexer:
    """Leases the models of bases. Any thread may use it. `models` gives a profile's model, for whom it is chosen only
    (None: for any key); `charge` counts an owner's tokens."""

    def __init__(self, engine: Engine, models: Callable[[str | None, Sequence[str] | None], Model],
                 charge: Callable[[str, int], None]) -> None:
        self._engine, self._models, self._charge = engine, models, charge

    def choose(self, profile: str | None, allowed: Sequence[str] | None) -> tuple[Model, str]:
        """The model of a profile (None: the first), and its fingerprint. Raises `NotFound`, `Forbidden`,
        `Unprocessable`."""
        model = self._models(profile, allowed)
        return model, fingerprint(Path(model.spec.model), model.document_prefix)

    @contextmanager
    def embedder(self, name: str, about: About, owner: str,
                 beat: Callable[[], None] = lambda: None) -> Iterator[Embedder]:
        """The model that the base `name` was made with. `Conflict` when its profile has another one now, and what a
        lease raises."""
        try:
            model, known = self.choose(about.profile, None)
        except NotFound as error:
            raise _changed(name, about, f"that profile cannot be used any more ({error.message})") from None
        if known != about.fingerprint:
            raise _changed(name, about, f"that profile's model is {Path(model.spec.model).name} now, another "
                                       "file or with another prefix")
        with self._engine.lease(model.spec, keep=model.keep, beat=beat) as lease:
            embedder = Embedder(model, lease, owner, self._charge, beat)
            if about.dimensions not in (0, embedder.dimensions):
                raise _changed(name, about, f"that model makes vectors of {embedder.dimensions} numbers now")
            yield embedder


def _changed(name: str, about: About, now: str) -> Conflict:
    size = f", {about.dimensions} numbers a vector" if about.dimensions else ""
    return Conflict(
        f"the knowledge base {name} was indexed with {about.model} (profile {about.profile!r}{size}), but {now}; "
        f"vectors of two models cannot be compared: POST /knowledge/{name}/reindex makes them anew from the stored "
        "texts, or set the profile back", code="embedding_model_changed", param="knowledge")


def chunks(document: Document, embedder: Embedder, tokens: int) -> list[Chunk]:
    """A document's chunks of at most `tokens`, or of what the model takes where that is less."""
    parts = split.split(document.text, document.title, min(tokens, embedder.n_ctx), embedder.count, document.sections)
    vectors = embedder.documents([split.told(part.title, part.text) for part in parts])
    return [Chunk(number, part.start, part.title, part.text, vector)
            for number, (part, vector) in enumerate(zip(parts, vectors, strict=True))]


def reindexed(about: About, model: Model, known: str, tokens: int | None) -> About:
    """`about` for another model."""
    return replace(about, profile=model.profile, model=Path(model.spec.model).name, fingerprint=known, dimensions=0,
                   chunk_tokens=min(tokens or about.chunk_tokens, model.spec.n_ctx))


def fingerprint(path: Path, prefix: str = "") -> str:
    """What tells vectors from others: the model file's size, beginning and end, and what stood before each text.
    `NotFound` when the file is gone."""
    try:
        status = os.stat(path)
        return _fingerprint(path, prefix, status.st_size, status.st_mtime_ns, status.st_ino)
    except FileNotFoundError:
        raise NotFound(f"the model file {path.name} is not there", code="model_not_found") from None


@lru_cache(maxsize=64)
def _fingerprint(path: Path, prefix: str, size: int, _mtime: int, _inode: int) -> str:
    with path.open("rb") as file:
        found = hashlib.sha256(f"{size} {prefix} ".encode() + file.read(SAMPLE))
        file.seek(max(0, size - SAMPLE))
        found.update(file.read(SAMPLE))
    return found.hexdigest()[:32]
