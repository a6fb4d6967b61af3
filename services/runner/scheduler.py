"""The loop of the runner: which sequences run in a step, with how many tokens, and how each ends.

No I/O and no ctypes: a `Backend` acts. `step` returns what is to be told, and to whom.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from services.runner.batch import Chunk, DecodeFailed, share
from services.runner.draft import Payoff
from services.runner.pace import Pace
from services.runner.seats import Seats
from services.runner.sequence import INTERACTIVE, PREPARE, SamplingFailed, Sequence
from services.runner.slots import WORTH, Memory, Slots
from services.wire import Failed, Logprob, Message, Piece, Queued, RunnerLimits, Stats

TELL = 1.0          # seconds between two words about places in the queue


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

    def logprob(self, row: int, token: int, top: int) -> Logprob:
        """How likely the token was behind batch row `row` of the last decode, and the `top` likeliest ones."""

    def piece(self, token: int) -> bytes:
        """The token's text, b"" for a control token."""

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""


Event = tuple[Sequence, Message]


class Scheduler:
    """Every sequence that was taken in ends in exactly one `Done` or `Failed` event; what is prepared ends without a
    word."""

    def __init__(self, backend: Backend, slots: Slots, limits: RunnerLimits,
                 clock: Callable[[], float] = time.monotonic) -> None:
        assert backend.n_batch >= len(slots.slots) + backend.n_drafts, "each answer needs its row in every batch"
        self.backend, self.slots, self.limits, self.clock = backend, slots, limits, clock
        self.seats = Seats(slots)
        self.pace = Pace(backend.n_batch, backend.n_least)
        self.payoff = Payoff()
        self.counts = Counts()
        self.progress = clock()
        self._told = 0.0                # when places in the queue were told last

    @property
    def runnable(self) -> bool:
        return self.seats.taken

    # ------------------------------------------------------------ what comes in

    def add(self, sequence: Sequence) -> list[Event]:
        """Take a request in, or refuse it when the queue is full, of its owner or of all."""
        sequence.arrived = self.clock()
        self.seats.drop_prepare(sequence.owner, sequence.session)
        queue = self.seats.queue
        if refusal := queue.refusal(sequence.owner, self.limits, self.seats.free):
            wait, (code, why) = self.pace.retry_after(len(queue), len(self.slots.slots)), refusal
            return self._fail(sequence, code, f"{why}; try again in {wait:.0f} s", retry_after=wait)
        queue.add(sequence)
        return []

    def prepare(self, sequence: Sequence) -> list[Event]:
        """Compute a prompt before it is asked for, when nothing else is to do."""
        self.seats.prepare(sequence)
        return []

    def cancel(self, sequence: Sequence) -> list[Event]:
        """End a request, wherever it is, before the next step. Nothing happens when it has ended."""
        return [] if sequence.ended else self._finish(sequence, "cancelled", sequence.text.finish())

    def forget(self, owner: str, session: str) -> list[Event]:
        """A session is gone: nothing of it stays."""
        self.seats.forget(owner, session)
        return []

    def admit(self) -> list[Event]:
        """Give slots to those whose turn it is, and tell the others their place.

        A `Piece` without text tells that a slot was taken: whoever has not heard it when the runner dies may ask anew.
        """
        events: list[Event] = [(s, Piece(id=s.id, text="", tokens=0)) for s in self.seats.admit(self.clock())]
        return events + self._tell_places()

    def _tell_places(self) -> list[Event]:
        """`Queued` for each that waits and whose place has changed, at most once a second; at once when new."""
        now, queue = self.clock(), self.seats.queue
        due = now - self._told >= TELL
        self._told = now if due else self._told
        events: list[Event] = []
        for sequence in queue:
            if sequence.placed is None and (due or not sequence.told):
                position = queue.position(sequence)
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
        events = self.admit()
        self.slots.close_ranks()
        began = self.clock()            # what is read from disk or moved is no price of a row
        chunks, sampled = self.plan(), self.counts.sampled
        answers = [chunk for chunk in chunks if chunk.sequence.decoding]
        prompts = [chunk for chunk in chunks if not chunk.sequence.decoding]
        rows = sum(chunk.rows for chunk in answers) if answers and self._decode(answers, events) else 0
        if rows:
            self.payoff.told(rows, self.clock() - began)
        tokens = sum(chunk.count for chunk in prompts) if prompts and self._decode(prompts, events) else 0
        self.counts.max_batch = max(self.counts.max_batch, len(chunks))
        if rows or tokens:
            self.pace.step_done(self.clock() - began, rows, tokens, self.counts.sampled - sampled)
        return events

    def plan(self) -> list[Chunk]:
        """The next batch: a token of every running answer and guesses at more, then prompt tokens as the pace allows;
        when there is nothing else, some of what is prepared."""
        answers, prompts = self._due()
        chunks = [Chunk(sequence, 1, draft) for sequence, draft in zip(answers, self._drafts(answers), strict=True)]
        room = self.pace.room(sum(chunk.rows for chunk in chunks), len(prompts), sum(s.pending for s in prompts))
        if not answers and not prompts:
            prompts, room = [s for s in self.seats.running if s.rank == PREPARE], self.pace.spare_room()
        telling = sum(s.tells for s in prompts)
        return chunks + share(room, [(s, self._most(s, telling)) for s in prompts])

    def _due(self) -> tuple[list[Sequence], list[Sequence]]:
        """The answers and the prompts that the step is for. Prompts that somebody waits for, and what such ones wait
        for, come before others. Of the others each owner's come one after the other, and where nobody waits for
        anything before answers: a pass over one long piece is the cheapest, and so is one over many answers."""
        running = self.seats.running
        answers = [s for s in running if s.decoding]
        prompts = [s for s in running if not s.decoding and s.leader is None and s.rank != PREPARE]
        waited = {id(s.leader) for s in running if s.rank == INTERACTIVE}
        if urgent := [s for s in prompts if s.rank == INTERACTIVE or id(s) in waited]:
            return answers, urgent
        firsts = [*{s.owner: s for s in reversed(prompts)}.values()]
        bulk = firsts and all(s.rank != INTERACTIVE for s in answers)
        return [] if bulk else answers, firsts

    def _drafts(self, answers: list[Sequence]) -> list[list[int]]:
        """Guesses for each, all as many: llama.cpp computes what is uneven in a pass of its own."""
        if not answers:
            return []
        self.payoff.answers = len(answers)
        most = self.backend.n_drafts // len(answers)
        drafts = [s.drafter.draft(s.tokens, min(most, s.room - 1)) if s.drafter and min(most, s.room - 1) > 0 else []
                  for s in answers]
        shortest = min(map(len, drafts))
        return [draft[:shortest] for draft in drafts]

    def _most(self, sequence: Sequence, telling: int) -> int:
        """Tokens of a prompt for one step. Where `telling` of them are told with their log probabilities these share
        the rows that are otherwise for drafts: a batch can tell no more."""
        most = min(sequence.pending, self._boundary(sequence))
        return min(most, max(1, self.backend.n_drafts // telling)) if sequence.tells else most

    def _boundary(self, sequence: Sequence) -> int:
        """Tokens up to the next place where the sequence's memory is wanted as it is then: by followers, or because
        the profile's head ends."""
        marks = [other.shared for other in self.seats.running if other.leader is sequence]
        marks.append(sequence.head if sequence.head >= WORTH else 0)
        return min((mark - sequence.past for mark in marks if mark > sequence.past), default=sequence.pending)

    def _decode(self, chunks: list[Chunk], events: list[Event]) -> bool:
        """Decode a part of a step, sample, and add what to tell to `events`; False when it ended them as failed.

        In the order of their slots: llama.cpp begins a new pass wherever the order breaks.
        """
        chunks = sorted(chunks, key=lambda chunk: chunk.sequence.slot or 0)
        try:
            rows = self.backend.decode(chunks)
        except DecodeFailed as error:
            events += [event for chunk in chunks for event in self._fail(
                chunk.sequence, "internal_error", f"the model could not process this: {error}", wipe=True)]
            return False
        sampling = [(chunk, row) for chunk, row in zip(chunks, rows, strict=True) if chunk.samples]
        for chunk, row in zip(chunks, rows, strict=True):
            self._count(chunk)
            events += self._tell_prompt(chunk, row)
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
        self.seats.queue.charge(sequence, chunk.rows)

    def _arrived(self, sequence: Sequence) -> None:
        """It got further, to a place where its memory may be wanted."""
        if not sequence.ended:
            if sequence.past == sequence.head >= WORTH:
                self.slots.note_head(sequence)
            self.seats.hand_on(sequence)

    def _tell_prompt(self, chunk: Chunk, row: int) -> list[Event]:
        """How likely the prompt's tokens were, where that is asked for: a `Piece` that stands for no token."""
        sequence, likely = chunk.sequence, chunk.sequence.likely
        if not likely or not sequence.tells:
            return []
        told = likely.of_prompt(sequence.prompt, sequence.past, chunk.count, row, self.backend.logprob)
        return [(sequence, Piece(id=sequence.id, text="", tokens=0, logprobs=told))] if told else []

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
            end = self.backend.is_end(token)
            if (likely := sequence.likely) and not end:
                likely.hold(sequence.text.read, self.backend.logprob(row + index, token, likely.top))
            new, reason = sequence.accept(token, self.backend.piece(token), end, self.clock())
            text += new
            if reason or token != guess:
                self._settle(chunk, index)
                return self._finish(sequence, reason, text) if reason else _say(sequence, text, index + 1)
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
            self.counts.reused += sequence.cached
            if sequence.slot is not None and sequence.placed is not None:
                self.pace.request_done(self.clock() - sequence.placed)
        self.seats.leave(sequence, wipe)

    # ------------------------------------------------------------ how it is

    def stats(self) -> Stats:
        slots, counts = self.slots.slots, self.counts
        return Stats(running=len(self.seats.answering), waiting=len(self.seats.queue), slots=len(slots),
                     slots_used=sum(slot.length > 0 for slot in slots),
                     cached_tokens=sum(slot.length for slot in slots), prompt_tokens=counts.prompt,
                     completion_tokens=counts.sampled, requests=counts.requests, max_batch=counts.max_batch,
                     tokens_per_second=self.pace.tokens_per_second, idle_seconds=self.clock() - self.progress,
                     reused_tokens=counts.reused, prepared_tokens=counts.prepared, drafted_tokens=counts.drafted,
                     accepted_tokens=counts.accepted, preempted=self.seats.preempted,
                     restored_tokens=self.slots.restored)

    def check_integrity(self) -> None:
        """Assert what must hold between two steps."""
        self.seats.check_integrity(self.backend.n_ctx)


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
    max_batch: int = 0


def _say(sequence: Sequence, text: str, tokens: int = 1) -> list[Event]:
    told = sequence.likely.take(sequence.text.certain) if sequence.likely else []
    return [(sequence, Piece(id=sequence.id, text=text, tokens=tokens, logprobs=told))] if text or told else []
