"""The loop of the runner: which sequences run in a step, with how many tokens, and how each ends.

No I/O and no ctypes: a `Backend` acts. `step` returns what is to be told, and to whom.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from services.errors import Unavailable
from services.runner.pace import Pace
from services.runner.sequence import SamplingFailed, Sequence
from services.runner.slots import Memory, Slots
from services.wire import Failed, Message, Piece, Stats


@dataclass(frozen=True)
class Chunk:
    """Part of a step: the next `count` undecoded tokens of `sequence`."""

    sequence: Sequence
    count: int

    @property
    def samples(self) -> bool:
        """Whether a token follows: the chunk ends with the last token known."""
        return self.count == self.sequence.pending


class DecodeFailed(Exception):
    """The batch was not decoded; the memory of the slots in it is in doubt."""


class Backend(Memory, Protocol):
    """The model, as the scheduler needs it."""

    n_ctx: int
    n_batch: int

    @property
    def n_least(self) -> int:
        """Tokens of a prompt below which a step computes them at a much higher price each; 1 when there is no such."""

    def decode(self, chunks: list[Chunk]) -> list[int]:
        """Decode one batch; the batch row of each chunk's last token. `DecodeFailed` when it cannot."""

    def piece(self, token: int) -> bytes:
        """The token's text, b"" for a control token."""

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""


Event = tuple[Sequence, Message]


class Scheduler:
    """Queues are named after states: `waiting` (by owner, in turn), `running`. Every sequence that was taken in ends in
    exactly one `Done` or `Failed` event."""

    def __init__(self, backend: Backend, slots: Slots, max_queue: int,
                 clock: Callable[[], float] = time.monotonic) -> None:
        assert backend.n_batch >= len(slots.slots), "each running answer needs its row in every batch"
        self.backend, self.slots, self.max_queue, self.clock = backend, slots, max_queue, clock
        self.waiting: OrderedDict[str, deque[Sequence]] = OrderedDict()
        self.running: list[Sequence] = []
        self.pace = Pace(backend.n_batch, backend.n_least)
        self.prompt_tokens = self.completion_tokens = self.requests = self.max_batch = 0
        self.progress = clock()

    @property
    def runnable(self) -> bool:
        return bool(self.running or self.waiting)

    @property
    def queued(self) -> int:
        return sum(map(len, self.waiting.values()))

    def add(self, sequence: Sequence) -> list[Event]:
        """Take a request in, or refuse it when the queue is full."""
        sequence.arrived = self.clock()
        queued = self.queued
        if queued >= self.max_queue + self.slots.idle:
            wait = self.pace.retry_after(queued, len(self.slots.slots))
            return self._fail(sequence, Unavailable.code, f"the model's queue is full: {queued} requests are waiting "
                              f"(limit {self.max_queue}); try again in {wait:.0f} s", retry_after=wait)
        self.waiting.setdefault(sequence.owner, deque()).append(sequence)
        return []

    def cancel(self, sequence: Sequence) -> list[Event]:
        """End a request, wherever it is, before the next step. Nothing happens when it has ended."""
        return [] if sequence.ended else self._finish(sequence, "cancelled", sequence.text.finish())

    def admit(self) -> list[Event]:
        """Fill idle slots: the owners take turns, each owner's requests come in order of arrival.

        A `Piece` without text tells that a slot was taken: whoever has not heard it when the runner dies may ask anew.
        """
        events: list[Event] = []
        while self.waiting and self.slots.idle:
            owner, queue = self.waiting.popitem(last=False)
            sequence = queue.popleft()
            if queue:
                self.waiting[owner] = queue
            placed = self.slots.place(sequence)
            assert placed
            sequence.placed = self.clock()
            self.running.append(sequence)
            events.append((sequence, Piece(id=sequence.id, text="")))
        return events

    def step(self) -> list[Event]:
        """Decode one batch and sample what follows; what to tell.

        Answers and prompts are decoded apart: llama.cpp's attention goes over as many cells for each sequence of a
        pass as the longest of them holds, so an answer would pay for the length of the prompt beside it.
        """
        began, events = self.clock(), self.admit()
        chunks, counted = self.plan(), (self.prompt_tokens, self.completion_tokens)
        answers = [chunk for chunk in chunks if chunk.sequence.decoding]
        prompts = [chunk for chunk in chunks if not chunk.sequence.decoding]
        decoding = 0
        if answers and self._decode(answers, events):
            decoding = len(answers)
        if prompts and self._decode(prompts, events):
            self.prompt_tokens += sum(chunk.count for chunk in prompts)
        self.max_batch = max(self.max_batch, len(chunks))
        processed, sampled = self.prompt_tokens - counted[0], self.completion_tokens - counted[1]
        if decoding or processed:
            self.pace.step_done(self.clock() - began, decoding, processed, sampled)
        return events

    def plan(self) -> list[Chunk]:
        """The next batch: a token of every running answer, then prompt tokens as the pace allows."""
        answers = [sequence for sequence in self.running if sequence.decoding]
        prompts = [sequence for sequence in self.running if not sequence.decoding]
        chunks = [Chunk(sequence, 1) for sequence in answers]
        return chunks + _share(self.pace.room(len(answers)), prompts)

    def stats(self) -> Stats:
        slots = self.slots.slots
        return Stats(running=len(self.running), waiting=self.queued, slots=len(slots),
                     slots_used=sum(slot.length > 0 for slot in slots),
                     cached_tokens=sum(slot.length for slot in slots), prompt_tokens=self.prompt_tokens,
                     completion_tokens=self.completion_tokens, requests=self.requests, max_batch=self.max_batch,
                     tokens_per_second=self.pace.tokens_per_second, idle_seconds=self.clock() - self.progress)

    def check_integrity(self) -> None:
        """Assert what must hold between two steps."""
        self.slots.check_integrity(self.backend.n_ctx)
        assert all(self.waiting.values()), "an owner without requests is in the queue"
        in_slots = {id(slot.sequence) for slot in self.slots.slots if slot.sequence}
        assert in_slots == {id(sequence) for sequence in self.running}
        queued = [sequence for queue in self.waiting.values() for sequence in queue]
        assert all(sequence.slot is None and not sequence.past for sequence in queued)
        assert not any(sequence.ended for sequence in [*self.running, *queued])

    def _decode(self, chunks: list[Chunk], events: list[Event]) -> bool:
        """Decode a part of a step, sample, and add what to tell to `events`; False when it ended them as failed."""
        try:
            rows = self.backend.decode(chunks)
        except DecodeFailed as error:
            events += [event for chunk in chunks for event in self._fail(
                chunk.sequence, "internal_error", f"the model could not process this: {error}", wipe=True)]
            return False
        sampled = [(chunk.sequence, row) for chunk, row in zip(chunks, rows, strict=True) if chunk.samples]
        for chunk in chunks:
            chunk.sequence.past += chunk.count
        events += [event for sequence, row in sampled for event in self._sample(sequence, row)]
        self.completion_tokens += len(sampled)
        self.progress = self.clock()
        return True

    def _sample(self, sequence: Sequence, row: int) -> list[Event]:
        try:
            token = sequence.sampler.sample(row)
        except SamplingFailed as error:
            return self._fail(sequence, "bad_schema", str(error))
        text, reason = sequence.accept(token, self.backend.piece(token), self.backend.is_end(token), self.clock())
        if reason:
            return self._finish(sequence, reason, text)
        return _say(sequence, text)

    def _finish(self, sequence: Sequence, reason: str, text: str) -> list[Event]:
        done = sequence.done(reason, self.clock())
        self._end(sequence)
        return [*_say(sequence, text), (sequence, done)]

    def _fail(self, sequence: Sequence, code: str, message: str, wipe: bool = False,
              retry_after: float | None = None) -> list[Event]:
        self._end(sequence, wipe)
        failed = Failed(id=sequence.id, code=code, message=message, retry_after=retry_after)
        return [*_say(sequence, sequence.text.finish()), (sequence, failed)]

    def _end(self, sequence: Sequence, wipe: bool = False) -> None:
        """Take a sequence out of whichever state it is in, and free what it holds."""
        assert not sequence.ended
        sequence.ended = True
        sequence.sampler.close()
        self.requests += 1
        queue = self.waiting.get(sequence.owner, ())
        if sequence.slot is not None:
            self.running.remove(sequence)
            self.slots.release(sequence, wipe)
            assert sequence.placed is not None
            self.pace.request_done(self.clock() - sequence.placed)
        elif sequence in queue:
            self.waiting[sequence.owner].remove(sequence)
            if not self.waiting[sequence.owner]:
                del self.waiting[sequence.owner]


def _say(sequence: Sequence, text: str) -> list[Event]:
    return [(sequence, Piece(id=sequence.id, text=text))] if text else []


def _share(room: int, prompts: list[Sequence]) -> list[Chunk]:
    """Split `room` evenly, the shortest first: what one does not need goes to the others."""
    chunks: list[Chunk] = []
    for left, sequence in zip(range(len(prompts), 0, -1), sorted(prompts, key=lambda s: s.pending), strict=True):
        count = min(sequence.pending, -(-room // left))
        room -= count
        if count:
            chunks.append(Chunk(sequence, count))
    return chunks
