"""The loop of the runner: which sequences run in a step, with how many tokens, and how each ends.

No I/O and no ctypes: a `Backend` acts. `step` returns what is to be told, and to whom.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Protocol

from services.errors import TooManyRequests, Unavailable
from services.runner.fair import Queue
from services.runner.pace import Pace
from services.runner.sequence import PREPARE, SamplingFailed, Sequence
from services.runner.slots import WORTH, Memory, Slots
from services.wire import Failed, Message, Piece, Queued, RunnerLimits, Stats

SLICE = 256         # tokens that an owner may be ahead of one that waits, where there are more owners than slots
MOST_PREPARES = 256 # prompts that wait to be prepared; older ones are dropped
TELL = 1.0          # seconds between two words about places in the queue


@dataclass(frozen=True)
class Chunk:
    """Part of a step: the next `count` undecoded tokens of `sequence`, and guesses of what follows them."""

    sequence: Sequence
    count: int
    draft: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return self.count + len(self.draft)

    @property
    def samples(self) -> bool:
        """Whether a token follows: the chunk ends with the last token known."""
        return self.count == self.sequence.pending and self.sequence.rank != PREPARE


class DecodeFailed(Exception):
    """The batch was not decoded; the memory of the slots in it is in doubt."""


class Backend(Memory, Protocol):
    """The model, as the scheduler needs it."""

    n_ctx: int
    n_batch: int
    n_drafts: int           # drafted tokens that one batch may check

    @property
    def n_least(self) -> int:
        """Tokens of a prompt below which a step computes them at a much higher price each; 1 when there is no such."""

    def decode(self, chunks: list[Chunk]) -> list[int]:
        """Decode one batch; the batch row of each chunk's last known token, behind which are the rows of its draft.
        `DecodeFailed` when it cannot."""

    def piece(self, token: int) -> bytes:
        """The token's text, b"" for a control token."""

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""


Event = tuple[Sequence, Message]


class Scheduler:
    """Places are named after states: `queue`, `running`, `prepares` (asked for, not begun). Every sequence that was
    taken in ends in exactly one `Done` or `Failed` event; what is prepared ends without a word."""

    def __init__(self, backend: Backend, slots: Slots, limits: RunnerLimits,
                 clock: Callable[[], float] = time.monotonic) -> None:
        assert backend.n_batch >= len(slots.slots) + backend.n_drafts, "each answer needs its row in every batch"
        self.backend, self.slots, self.limits, self.clock = backend, slots, limits, clock
        self.queue: Queue[Sequence] = Queue()
        self.running: list[Sequence] = []
        self.prepares: dict[tuple[str, str], Sequence] = {}     # by owner and session
        self.pace = Pace(backend.n_batch, backend.n_least)
        self.counts = Counts()
        self.progress = clock()
        self._told = 0.0                # when places in the queue were told last

    @property
    def runnable(self) -> bool:
        return bool(self.running or len(self.queue) or self.prepares)

    # ------------------------------------------------------------ what comes in

    def add(self, sequence: Sequence) -> list[Event]:
        """Take a request in, or refuse it when the queue is full, of its owner or of all."""
        sequence.arrived = self.clock()
        self._end_prepare(sequence.owner, sequence.session)
        queued, idle = len(self.queue), self._free
        own = self.queue.owners.get(sequence.owner)
        wait = self.pace.retry_after(queued, len(self.slots.slots))
        if queued >= self.limits.max_queue + idle:
            return self._fail(sequence, Unavailable.code, f"the model's queue is full: {queued} requests are waiting "
                              f"(limit {self.limits.max_queue}); try again in {wait:.0f} s", retry_after=wait)
        if own and own.waiting >= self.limits.max_queue_per_owner + idle:
            return self._fail(sequence, TooManyRequests.code, f"{own.waiting} requests of this key are waiting "
                              f"already (limit {self.limits.max_queue_per_owner}); try again in {wait:.0f} s",
                              retry_after=wait)
        self.queue.add(sequence)
        return []

    def prepare(self, sequence: Sequence) -> list[Event]:
        """Compute a prompt before it is asked for, when nothing else is to do. The last of a session counts."""
        assert sequence.rank == PREPARE
        self._end_prepare(sequence.owner, sequence.session)
        while len(self.prepares) >= MOST_PREPARES:
            self.prepares.pop(next(iter(self.prepares)))
        self.prepares[sequence.owner, sequence.session] = sequence
        return []

    def cancel(self, sequence: Sequence) -> list[Event]:
        """End a request, wherever it is, before the next step. Nothing happens when it has ended."""
        return [] if sequence.ended else self._finish(sequence, "cancelled", sequence.text.finish())

    def forget(self, owner: str, session: str) -> list[Event]:
        """A session is gone: nothing of it stays."""
        self._end_prepare(owner, session)
        for sequence in [*self.running, *self.queue]:
            if (sequence.owner, sequence.session) == (owner, session):
                sequence.forgotten = True
        self.slots.forget(owner, session)
        return []

    # ------------------------------------------------------------ who gets a slot

    def admit(self) -> list[Event]:
        """Fill idle slots, and take some from those who have more than their share; then tell the others their place.

        A `Piece` without text tells that a slot was taken: whoever has not heard it when the runner dies may ask anew.
        """
        events: list[Event] = []
        while (sequence := self.queue.peek()) and self._make_room(sequence):
            self.queue.take(sequence)
            if sequence.placed is None:
                events.append((sequence, Piece(id=sequence.id, text="")))
            self._place(sequence)
        while self.prepares and not any(s.rank != PREPARE for s in self.running) and self.slots.idle:
            self._place(self.prepares.pop(next(iter(self.prepares))))
        return events + self._tell_places()

    def _place(self, sequence: Sequence) -> None:
        placed = self.slots.place(sequence)
        assert placed
        self.running.append(sequence)
        if sequence.rank != PREPARE:
            if sequence.placed is None:
                self.slots.lead(sequence)
            sequence.placed = sequence.placed or self.clock()

    def _make_room(self, sequence: Sequence) -> bool:
        """Have an idle slot for it: what is prepared gives way, then who has more than its share."""
        if self.slots.idle:
            return True
        victim = self._victim(sequence)
        if victim is None:
            return False
        if victim.rank == PREPARE:
            self._end(victim)
        else:
            self._preempt(victim)
        return True

    def _victim(self, sequence: Sequence) -> Sequence | None:
        """The running sequence that has to wait in its place; None when nobody has to."""
        owner = self.queue.owners[sequence.owner]
        share, slots = self.queue.share, len(self.slots.slots)
        entitled = owner.running + 1 <= share(owner.name, slots)

        def gives_way(other: Sequence) -> bool:
            if other.rank > sequence.rank:
                return True
            if other.rank < sequence.rank or other.owner == sequence.owner:
                return False
            holder = self.queue.owners[other.owner]
            above = holder.running - 1 >= share(holder.name, slots)
            ahead = holder.running >= owner.running + 1 and holder.time >= owner.time + SLICE / holder.weight
            return (entitled and above) or ahead

        victims = [other for other in self.running if gives_way(other)]
        return max(victims, key=lambda other: (other.rank, self._time(other), other.placed or 0), default=None)

    def _time(self, sequence: Sequence) -> float:
        owner = self.queue.owners.get(sequence.owner)
        return owner.time if owner else 0.0

    def _preempt(self, sequence: Sequence) -> None:
        """Its slot is another owner's now; it goes on where it was, before its owner's others."""
        followers = self._hand_over(sequence)
        sequence.leader = None
        self.running.remove(sequence)
        self.slots.suspend(sequence)
        self.queue.add(sequence, first=True)
        self.queue.left(sequence)
        self._lead(followers)
        self.counts.preempted += 1

    def _tell_places(self) -> list[Event]:
        """`Queued` for each that waits and whose place has changed, at most once a second; at once when new."""
        now = self.clock()
        due = now - self._told >= TELL
        waiting = [s for s in self.queue if s.placed is None and (due or not s.told)]
        if not waiting:
            return []
        self._told = now if due else self._told
        events: list[Event] = []
        for sequence in waiting:
            position = self.queue.position(sequence)
            if position != sequence.told:
                sequence.told = position
                eta = self.pace.wait(position, len(self.slots.slots))
                events.append((sequence, Queued(id=sequence.id, position=position, eta_seconds=round(eta, 1))))
        return events

    # ------------------------------------------------------------ a step

    def step(self) -> list[Event]:
        """Decode one batch and sample what follows; what to tell.

        Answers and prompts are decoded apart: llama.cpp's attention goes over as many cells for each sequence of a
        pass as the longest of them holds, so an answer would pay for the length of the prompt beside it.
        """
        began, events = self.clock(), self.admit()
        chunks, sampled = self.plan(), self.counts.sampled
        answers = [chunk for chunk in chunks if chunk.sequence.decoding]
        prompts = [chunk for chunk in chunks if not chunk.sequence.decoding]
        rows = sum(chunk.rows for chunk in answers) if answers and self._decode(answers, events) else 0
        tokens = sum(chunk.count for chunk in prompts) if prompts and self._decode(prompts, events) else 0
        self.counts.max_batch = max(self.counts.max_batch, len(chunks))
        if rows or tokens:
            self.pace.step_done(self.clock() - began, rows, tokens, self.counts.sampled - sampled)
        return events

    def plan(self) -> list[Chunk]:
        """The next batch: a token of every running answer and guesses at more, then prompt tokens as the pace allows;
        when there is nothing else, some of what is prepared."""
        answers = [sequence for sequence in self.running if sequence.decoding]
        prompts = [s for s in self.running if not s.decoding and s.leader is None and s.rank != PREPARE]
        chunks = [Chunk(sequence, 1, self._draft(sequence, len(answers))) for sequence in answers]
        room = self.pace.room(sum(chunk.rows for chunk in chunks))
        if not answers and not prompts:
            prompts, room = [s for s in self.running if s.rank == PREPARE], self.pace.spare_room()
        return chunks + self._share(room, prompts)

    def _draft(self, sequence: Sequence, answers: int) -> list[int]:
        most = min(self.backend.n_drafts // answers, sequence.room - 1)
        return sequence.drafter.draft(sequence.tokens, most) if sequence.drafter and most > 0 else []

    def _share(self, room: int, prompts: list[Sequence]) -> list[Chunk]:
        """Split `room` over the owners by weight, then evenly over each owner's prompts."""
        owned: dict[str, list[Sequence]] = {}
        for sequence in prompts:
            owned.setdefault(sequence.owner, []).append(sequence)
        wanted = {id(s): min(s.pending, self._boundary(s)) for s in prompts}
        parts = _pour(room, [(sum(wanted[id(s)] for s in own), own[0].weight) for own in owned.values()])
        chunks = []
        for own, part in zip(owned.values(), parts, strict=True):
            counts = _pour(part, [(wanted[id(s)], 1.0) for s in own])
            chunks += [Chunk(s, count) for s, count in zip(own, counts, strict=True) if count]
        return chunks

    def _boundary(self, sequence: Sequence) -> int:
        """Tokens up to the next place where the sequence's memory is wanted as it is then: by followers, or because
        the profile's head ends."""
        marks = [other.shared for other in self.running if other.leader is sequence]
        marks.append(sequence.head if sequence.head >= WORTH else 0)
        return min((mark - sequence.past for mark in marks if mark > sequence.past), default=sequence.pending)

    def _decode(self, chunks: list[Chunk], events: list[Event]) -> bool:
        """Decode a part of a step, sample, and add what to tell to `events`; False when it ended them as failed."""
        try:
            rows = self.backend.decode(chunks)
        except DecodeFailed as error:
            events += [event for chunk in chunks for event in self._fail(
                chunk.sequence, "internal_error", f"the model could not process this: {error}", wipe=True)]
            return False
        sampling = [(chunk, row) for chunk, row in zip(chunks, rows, strict=True) if chunk.samples]
        for chunk in chunks:
            self._count(chunk)
            chunk.sequence.past += chunk.count
        events += [event for chunk, row in sampling for event in self._sample(chunk, row)]
        for chunk in chunks:
            self._arrived(chunk.sequence)
        self.progress = self.clock()
        return True

    def _count(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        if sequence.rank == PREPARE:
            self.counts.prepared += chunk.count
            return
        if not sequence.decoding:
            self.counts.prompt += chunk.count
        self.queue.charge(sequence, chunk.rows)

    def _arrived(self, sequence: Sequence) -> None:
        """What others wait for may be there now."""
        if sequence.ended:
            return
        if sequence.past == sequence.head >= WORTH:
            self.slots.note_head(sequence)
        for other in [other for other in self.running if other.leader is sequence]:
            if sequence.past >= other.shared:
                self.slots.follow(other)
        if sequence.rank == PREPARE and not sequence.pending:
            self._end(sequence)

    def _sample(self, chunk: Chunk, row: int) -> list[Event]:
        """Sample behind the last known token, then behind each guess as long as the guesses were right."""
        sequence, text = chunk.sequence, ""
        for index, guess in enumerate([*chunk.draft, -1]):
            try:
                token = sequence.sampler.sample(row + index)
            except SamplingFailed as error:
                self._settle(chunk, index)
                return [*_say(sequence, text), *self._fail(sequence, "bad_schema", str(error))]
            self.counts.sampled += 1
            new, reason = sequence.accept(token, self.backend.piece(token), self.backend.is_end(token), self.clock())
            text += new
            if reason or token != guess:
                self._settle(chunk, index)
                return self._finish(sequence, reason, text) if reason else _say(sequence, text)
        raise AssertionError("no token is -1")

    def _settle(self, chunk: Chunk, accepted: int) -> None:
        """So many guesses were right: the memory keeps those."""
        if not chunk.draft:
            return
        sequence = chunk.sequence
        assert sequence.slot is not None and sequence.drafter
        sequence.past += accepted
        sequence.drafted += len(chunk.draft)
        sequence.accepted += accepted
        self.counts.drafted += len(chunk.draft)
        self.counts.accepted += accepted
        sequence.drafter.told(len(chunk.draft), accepted)
        if accepted < len(chunk.draft):
            cut = self.backend.cut(sequence.slot, sequence.past)
            assert cut, "drafts are for memories that can be rewound"

    # ------------------------------------------------------------ how it ends

    def _finish(self, sequence: Sequence, reason: str, text: str) -> list[Event]:
        done = sequence.done(reason, self.clock())
        self._end(sequence)
        return [*_say(sequence, text), (sequence, done)]

    def _fail(self, sequence: Sequence, code: str, message: str, wipe: bool = False,
              retry_after: float | None = None) -> list[Event]:
        self._end(sequence, wipe)
        if sequence.rank == PREPARE:
            return []
        failed = Failed(id=sequence.id, code=code, message=message, retry_after=retry_after)
        return [*_say(sequence, sequence.text.finish()), (sequence, failed)]

    def _end(self, sequence: Sequence, wipe: bool = False) -> None:
        """Take a sequence out of whichever state it is in, and free what it holds."""
        assert not sequence.ended
        sequence.ended = True
        sequence.sampler.close()
        if sequence.rank != PREPARE:
            self.counts.requests += 1
        if sequence.slot is not None:
            followers = self._hand_over(sequence, wipe)
            self.running.remove(sequence)
            self.slots.release(sequence, wipe or sequence.forgotten)
            self._lead(followers)
            if sequence.rank != PREPARE:
                self.queue.left(sequence)
                self.counts.reused += sequence.cached
                assert sequence.placed is not None
                self.pace.request_done(self.clock() - sequence.placed)
        elif sequence in self.queue:
            self.queue.remove(sequence)

    def _end_prepare(self, owner: str, session: str) -> None:
        """What was to be prepared for the session is not any more; what is done of it stays in its slot."""
        self.prepares.pop((owner, session), None)
        for sequence in self.running:
            if sequence.rank == PREPARE and (sequence.owner, sequence.session) == (owner, session):
                self._end(sequence)
                break

    def _hand_over(self, leader: Sequence, wipe: bool = False) -> list[Sequence]:
        """It ends, or loses its slot: its followers, who take what there is."""
        followers = [other for other in self.running if other.leader is leader]
        for other in followers:
            if wipe:
                other.leader = None
            else:
                self.slots.follow(other)
        return followers

    def _lead(self, followers: list[Sequence]) -> None:
        """One of them goes on, the others wait for it."""
        for other in followers[1:]:
            self.slots.lead(other)

    # ------------------------------------------------------------ how it is

    @property
    def _free(self) -> int:
        """Slots that a newcomer could have: idle ones, and those in which something is only prepared."""
        return self.slots.idle + sum(sequence.rank == PREPARE for sequence in self.running)

    def stats(self) -> Stats:
        slots, counts = self.slots.slots, self.counts
        running = [sequence for sequence in self.running if sequence.rank != PREPARE]
        return Stats(running=len(running), waiting=len(self.queue), slots=len(slots),
                     slots_used=sum(slot.length > 0 for slot in slots),
                     cached_tokens=sum(slot.length for slot in slots), prompt_tokens=counts.prompt,
                     completion_tokens=counts.sampled, requests=counts.requests, max_batch=counts.max_batch,
                     tokens_per_second=self.pace.tokens_per_second, idle_seconds=self.clock() - self.progress,
                     reused_tokens=counts.reused, prepared_tokens=counts.prepared, drafted_tokens=counts.drafted,
                     accepted_tokens=counts.accepted, preempted=counts.preempted,
                     restored_tokens=self.slots.restored)

    def check_integrity(self) -> None:
        """Assert what must hold between two steps."""
        self.slots.check_integrity(self.backend.n_ctx)
        in_slots = {id(slot.sequence) for slot in self.slots.slots if slot.sequence}
        assert in_slots == {id(sequence) for sequence in self.running}
        queued = [*self.queue, *self.prepares.values()]
        assert all(sequence.slot is None and not sequence.past for sequence in queued)
        assert not any(sequence.ended for sequence in [*self.running, *queued])
        for name, owner in self.queue.owners.items():
            assert owner.running == sum(s.owner == name and s.rank != PREPARE for s in self.running)
            assert owner.running or owner.waiting, "an owner at rest has an account"


@dataclass
class Counts:
    """Since the runner's start; see `wire.Stats`."""

    prompt: int = 0
    sampled: int = 0
    reused: int = 0
    prepared: int = 0
    drafted: int = 0
    accepted: int = 0
    requests: int = 0
    preempted: int = 0
    max_batch: int = 0


def _say(sequence: Sequence, text: str) -> list[Event]:
    return [(sequence, Piece(id=sequence.id, text=text))] if text else []


def _pour(room: int, wants: list[tuple[int, float]]) -> list[int]:
    """Split `room` by weight over (demand, weight): what one does not need goes to the others."""
    given, total = [0] * len(wants), sum(weight for _, weight in wants)
    for index in sorted(range(len(wants)), key=lambda i: wants[i][0] / wants[i][1]):
        demand, weight = wants[index]
        given[index] = min(demand, ceil(room * weight / total))
        room, total = room - given[index], total - weight
    return given
