"""The loop's other kind of work: texts to vectors, or to scores. Batches take the texts of all owners in turn.

No I/O and no ctypes, as in services.runner.scheduler, whose surface this has: a `Backend` acts.
"""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.errors import BadModel, BadRequest, ContextOverflow
from services.runner.fair import Queue
from services.runner.sequence import INTERACTIVE
from services.wire import Count, Counted, Embed, Failed, Message, Rank, Ranked, RunnerLimits, Stats, Vectors

BYTES_PER_TOKEN = 32    # a text with more bytes than this for each token that it may have is not even tokenised
BLEND = 0.2             # weight of the newest batch in the speed that is told
NO_SPEED = 5.0          # seconds to wait when no speed was measured yet
LONGEST_WAIT = 60.0


class EmbedFailed(Exception):
    """The batch was not computed."""


class Backend(Protocol):
    """The model, as it is needed here."""

    name: str
    n_ctx: int              # tokens of the longest text
    n_vocab: int
    n_around: int           # of them, those that the model puts around each text
    n_batch: int            # tokens that one batch may carry
    n_shared: int           # tokens that a batch of several texts may carry
    n_slots: int            # texts that one batch may hold
    n_embd: int
    ranks: bool             # whether it gives scores to pairs of texts, and makes no vectors

    def read(self, text: str) -> list[int]:
        """The tokens of a text."""

    def around(self, tokens: list[int]) -> list[int]:
        """The tokens of a text with those that the model puts around each, where they are not there already."""

    def pair(self, query: str, text: str) -> list[int]:
        """The tokens of a pair."""

    def embed(self, texts: Sequence[Sequence[int]]) -> list[bytes]:
        """The vectors of a batch, or the scores of pairs, each one float32; b"" for what is not finite. `EmbedFailed`
        when there are none."""


@dataclass(eq=False)
class Job:
    """One `Embed` or `Rank` from arrival to end. The scheduler alone changes it."""

    id: str
    owner: str
    texts: list[array[int]]             # tokens; at least one text
    weight: float = 1.0
    rank: int = INTERACTIVE
    reply: Any = None                   # who waits for the vectors; opaque to the scheduler
    begun: int = 0                      # texts that went into a batch
    vectors: list[bytes] = field(default_factory=list)
    ended: bool = False


Event = tuple[Job, Message]


class EmbedScheduler:
    """Each job that was taken in waits in `queue` until its last text is in a batch, and ends in exactly one `Vectors`,
    `Ranked` or `Failed` event. Owners take turns, text by text, by the tokens computed for each."""

    def __init__(self, backend: Backend, limits: RunnerLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.backend, self.limits, self.clock = backend, limits, clock
        self.queue: Queue[Job] = Queue()
        self.tokens = self.requests = self.max_batch = 0
        self.speed = 0.0                # tokens a second while there is work
        self.progress = clock()

    @property
    def runnable(self) -> bool:
        return bool(len(self.queue))

    def add(self, job: Job) -> list[Event]:
        """Take a job in, or refuse it when the queue is full, of its owner or of all."""
        if refusal := self.queue.refusal(job.owner, self.limits):
            return self._refuse(job, *refusal)
        self.queue.add(job)
        return []

    def cancel(self, job: Job) -> list[Event]:
        """End a job before the next batch. Nothing happens when it has ended."""
        return [] if job.ended else self._fail(job, "cancelled", "the request was given up")

    def admit(self) -> list[Event]:
        """Nothing: whatever waits goes into the next batch that has room."""
        return []

    def step(self) -> list[Event]:
        """Compute one batch; what to tell."""
        began, batch = self.clock(), self._batch()
        if not batch:
            return []
        texts = [job.texts[number] for job, number in batch]
        try:
            vectors = self.backend.embed(texts)
        except EmbedFailed as error:
            return [event for job in {id(job): job for job, _ in batch}.values()
                    for event in self._fail(job, "internal_error", f"the model could not process this: {error}")]
        self._measure(len(texts), sum(map(len, texts)), self.clock() - began)
        return [event for (job, _), vector in zip(batch, vectors, strict=True) for event in self._take(job, vector)]

    def stats(self) -> Stats:
        begun = sum(job.begun > 0 for job in self.queue)
        return Stats(running=begun, waiting=len(self.queue) - begun, slots=self.backend.n_slots, slots_used=0,
                     cached_tokens=0, prompt_tokens=self.tokens, completion_tokens=0, requests=self.requests,
                     max_batch=self.max_batch, tokens_per_second=self.speed,
                     idle_seconds=self.clock() - self.progress)

    def _batch(self) -> list[tuple[Job, int]]:
        """The texts that are next, as many as fit: (job, number of the text)."""
        batch: list[tuple[Job, int]] = []
        room = self.backend.n_batch
        while len(batch) < self.backend.n_slots and (job := self.queue.peek()):
            size = len(job.texts[job.begun])
            if size > room:
                break
            batch.append((job, job.begun))
            room = min(room, self.backend.n_shared) - size
            self.queue.charge(job, size)
            job.begun += 1
            if job.begun == len(job.texts):
                self.queue.remove(job)
        return batch

    def _measure(self, texts: int, tokens: int, seconds: float) -> None:
        self.tokens += tokens
        self.max_batch = max(self.max_batch, texts)
        self.progress = self.clock()
        if seconds > 0:
            self.speed += (tokens / seconds - self.speed) * (BLEND if self.speed else 1.0)

    def _take(self, job: Job, vector: bytes) -> list[Event]:
        if job.ended:
            return []
        if not vector:
            return self._fail(job, "internal_error", "the model computed numbers that are not finite for a text")
        job.vectors.append(vector)
        if len(job.vectors) < len(job.texts):
            return []
        self._end(job)
        tokens = [len(text) for text in job.texts]
        if self.backend.ranks:
            scores = [struct.unpack("<f", score)[0] for score in job.vectors]
            return [(job, Ranked(id=job.id, scores=scores, tokens=tokens))]
        return [(job, Vectors(id=job.id, dimensions=self.backend.n_embd, vectors=job.vectors, tokens=tokens))]

    def _refuse(self, job: Job, code: str, message: str) -> list[Event]:
        pending = sum(len(text) for waiting in self.queue for text in waiting.texts[waiting.begun:])
        wait = min(max(1.0, pending / self.speed), LONGEST_WAIT) if self.speed else NO_SPEED
        return self._fail(job, code, f"{message}; try again in {wait:.0f} s", retry_after=wait)

    def _fail(self, job: Job, code: str, message: str, retry_after: float | None = None) -> list[Event]:
        self._end(job)
        return [(job, Failed(id=job.id, code=code, message=message, retry_after=retry_after))]

    def _end(self, job: Job) -> None:
        assert not job.ended
        job.ended = True
        self.requests += 1
        if job in self.queue:
            self.queue.remove(job)


def prepare(model: Backend, message: Message) -> Job:
    """Tokenise and check. An error about a text carries its number, from 0, as the detail `text`."""
    if not isinstance(message, Rank if model.ranks else Embed):
        raise BadModel(f"{model.name} ranks texts, and does nothing else: ask it by POST /v1/rerank" if model.ranks else
                       f"{model.name} makes embeddings, and does nothing else: ask it by POST /v1/embeddings")
    assert isinstance(message, Rank | Embed)
    if not message.texts:
        raise BadRequest("there is no text to embed", param="input")
    return Job(id=message.id, owner=message.owner, weight=message.weight,
               texts=[_tokens(model, number, text, message.query if isinstance(message, Rank) else None)
                      for number, text in enumerate(message.texts)])


def count(model: Backend, message: Count) -> Counted:
    return Counted(tokens=[len(_tokens(model, number, "".join(prompt)))
                           for number, prompt in enumerate(message.prompts)])


def _tokens(model: Backend, number: int, text: str | list[int], query: str | None = None) -> array[int]:
    """Of a text by itself, or with the query that it may answer."""
    tokens = _read(model, number, text, query) if isinstance(text, str) else _given(model, number, text)
    if len(tokens) > model.n_ctx:
        raise _overflow(model, number, str(len(tokens)), len(tokens))
    if len(tokens) <= model.n_around:
        raise BadRequest("a text is empty, or holds nothing that the model can read", text=number)
    return array("i", tokens)


def _read(model: Backend, number: int, text: str, query: str | None) -> list[int]:
    size = len(text) + len(query or "")
    if size > model.n_ctx * BYTES_PER_TOKEN:
        raise _overflow(model, number, f"at least {size // BYTES_PER_TOKEN}", size // BYTES_PER_TOKEN)
    return model.read(text) if query is None else model.pair(query, text)


def _given(model: Backend, number: int, tokens: list[int]) -> list[int]:
    """Tokens that a client has, checked."""
    if foreign := [token for token in tokens if not 0 <= token < model.n_vocab]:
        raise BadRequest(f"{foreign[0]} is no token of this model: they are 0 to {model.n_vocab - 1}, as /tokenize "
                         "tells them", text=number)
    return model.around(tokens)


def _overflow(model: Backend, number: int, told: str, tokens: int) -> ContextOverflow:
    what = "a text and the query have" if model.ranks else "a text has"
    return ContextOverflow(f"{what} {told} tokens; {model.name} takes at most {model.n_ctx}: split the text",
                           text=number, prompt_tokens=tokens, limit=model.n_ctx, n_ctx=model.n_ctx)
