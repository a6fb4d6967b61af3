"""A model without a model: what follows a prompt is a known function of all its tokens."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import Any

from services.runner.batch import Chunk, DecodeFailed
from services.runner.scheduler import Event, Scheduler
from services.runner.sequence import PREPARE, SamplingFailed, Sequence, Silent
from services.runner.slots import Shelf, Slots, common_prefix
from services.runner.text import Text
from services.wire import Done, Failed, Logprob, Piece, Queued, RunnerLimits

VOCABULARY, END = 26, 26


def following(tokens: list[int]) -> int:
    """The token after `tokens`; each of them matters, and its place."""
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % 1_000_003
    return state % VOCABULARY


def completion(prompt: list[int], count: int) -> str:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(following(tokens))
    return "".join(chr(97 + token) for token in tokens[len(prompt):])


class FakeClock:
    """Time passes only when told."""

    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


class FakeBackend:
    """Holds tokens per slot and samples from what it holds, so that a wrong reuse shows as a wrong text."""

    def __init__(self, slots: int = 4, n_ctx: int = 64, n_batch: int = 16, rewindable: bool = True) -> None:
        self.n_ctx, self.n_batch, self.rewindable = n_ctx, n_batch, rewindable
        self.n_least, self.n_drafts = 1, 4
        self.memory: list[list[int]] = [[] for _ in range(slots)]
        self.rows: list[list[int]] = []
        self.batches: list[list[tuple[Sequence, int, bool]]] = []
        self.clock = FakeClock()
        self.fails = 0                          # decodes that are to fail
        self.loads = True                       # whether states can be loaded
        self.cost = (0.01, 0.001)               # seconds of a step, and of each token in it

    def cut(self, slot: int, keep: int) -> bool:
        if keep and not self.rewindable:
            return False
        del self.memory[slot][keep:]
        return True

    def copy(self, source: int, target: int) -> bool:
        assert not self.memory[target] and source != target
        self.memory[target] = list(self.memory[source])
        return True

    def save(self, slot: int) -> bytes:
        return bytes(self.memory[slot])

    def load(self, slot: int, state: bytes, count: int) -> bool:
        assert not self.memory[slot] and len(state) == count
        self.memory[slot] = list(state) if self.loads else []
        return self.loads

    def decode(self, chunks: list[Chunk]) -> list[int]:
        assert 0 < sum(chunk.rows for chunk in chunks) <= self.n_batch
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        self.clock.now += self.cost[0] + self.cost[1] * sum(chunk.rows for chunk in chunks)
        self.batches.append([(chunk.sequence, chunk.count, chunk.sequence.decoding) for chunk in chunks])
        if self.fails:
            self.fails -= 1
            raise DecodeFailed("as told")
        self.rows, last = [], []
        for chunk in chunks:
            sequence = chunk.sequence
            assert sequence.slot is not None
            held = self.memory[sequence.slot]
            assert len(held) == sequence.past, "the memory holds what the sequence believes"
            assert self.rewindable or not chunk.draft
            held += sequence.tokens[sequence.past:sequence.past + chunk.count]
            self.rows += [held[:len(held) - n] for n in range(chunk.count - 1, 0, -1)]
            last.append(len(self.rows))
            self.rows.append(list(held))
            for token in chunk.draft:
                held.append(token)
                self.rows.append(list(held))
            assert len(held) <= self.n_ctx
        return last

    def logprob(self, row: int, token: int, top: int) -> Logprob:
        """Told by what follows: the token's distance to what should, and the tokens from there on."""
        told = [(other, self.piece(other), -float(n)) for n, other in enumerate(range(following(self.rows[row]), END))]
        return Logprob(token=token, text=self.piece(token), logprob=float(following(self.rows[row]) - token),
                       top=told[:top])

    def piece(self, token: int) -> bytes:
        return bytes([97 + token]) if token < VOCABULARY else b""

    def is_end(self, token: int) -> bool:
        return token == END


class FakeSampler:
    def __init__(self, backend: FakeBackend, ends_after: int | None = None, stuck: bool = False) -> None:
        self.backend, self.left, self.stuck = backend, ends_after, stuck
        self.ended = 0
        self.finished, self.closed = False, False

    def sample(self, row: int) -> int:
        if self.stuck:
            raise SamplingFailed("nothing fits")
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                return END
        return following(self.backend.rows[row])

    def draft(self, most: int) -> list[int]:
        return []

    def close(self) -> None:
        self.ended += 1


@dataclass
class FakeMatch:
    tokens: list[int]
    state: bytes
    count: int


class FakeShelf:
    """Keeps everything."""

    def __init__(self, rewindable: bool = True) -> None:
        self.rewindable = rewindable
        self.kept: list[tuple[str, str, list[int], bytes]] = []

    def put(self, owner: str, session: str, tokens: Tokens[int], state: bytes, head: int = 0) -> None:
        assert list(state) == list(tokens), "the state is that of the tokens"
        self.kept.append((owner, session, list(tokens), state))

    def find(self, owner: str, prompt: Tokens[int], better_than: int) -> FakeMatch | None:
        best = None
        for whose, _, tokens, state in self.kept:
            usable = common_prefix(tokens, list(prompt[:-1])) if whose in (owner, "") else 0
            if (self.rewindable or usable == len(tokens)) and usable > better_than:
                best, better_than = FakeMatch(tokens, state, usable), usable
        return best

    def read(self, match: FakeMatch) -> bytes | None:
        return match.state

    def forget(self, owner: str, session: str) -> None:
        self.kept = [kept for kept in self.kept if kept[:2] != (owner, session)]


class Desk:
    """A scheduler over a fake backend, with the events it gave sorted by request."""

    def __init__(self, backend: FakeBackend, max_queue: int = 64, shelf: Shelf | None = None, **limits: int) -> None:
        self.backend = backend
        self.shelf = shelf or FakeShelf(backend.rewindable)
        slots = Slots(len(backend.memory), backend, backend.rewindable, self.shelf)
        self.scheduler = Scheduler(backend, slots, RunnerLimits(max_queue=max_queue, **limits), backend.clock)
        self.places: dict[Sequence, list[int]] = {}
        self.texts: dict[Sequence, str] = {}
        self.ends: dict[Sequence, Done | Failed] = {}
        self.logprobs: dict[Sequence, list[Logprob]] = {}

    def ask(self, prompt: list[int], owner: str = "o", max_tokens: int = 5, stop: tuple[str, ...] = (),
            ends_after: int | None = None, stuck: bool = False, **more: Any) -> Sequence:
        sequence = Sequence(id="same for all", owner=owner, prompt=prompt, max_tokens=max_tokens, text=Text(stop),
                            sampler=FakeSampler(self.backend, ends_after, stuck), **more)
        self.texts[sequence] = ""
        self.take(self.scheduler.add(sequence))
        return sequence

    def prepare(self, prompt: list[int], session: str, owner: str = "o", head: int = 0) -> None:
        self.take(self.scheduler.prepare(Sequence(
            id="", owner=owner, prompt=prompt, max_tokens=0, text=Text(), sampler=Silent(), session=session, head=head,
            rank=PREPARE)))

    def take(self, events: list[Event]) -> None:
        for sequence, message in events:
            assert sequence not in self.ends, "nothing comes after the end"
            if isinstance(message, Queued):
                assert not self.texts[sequence] and message.position > 0
                self.places.setdefault(sequence, []).append(message.position)
            elif isinstance(message, Piece):
                assert message.text or not self.texts[sequence]     # without text: a slot was taken
                self.texts[sequence] += message.text
                self.logprobs.setdefault(sequence, []).extend(message.logprobs)
            else:
                assert isinstance(message, (Done, Failed))
                self.ends[sequence] = message

    def step(self) -> None:
        self.take(self.scheduler.step())
        self.scheduler.check_integrity()
        for slot in self.scheduler.slots.slots:
            assert self.backend.memory[slot.index] == slot.tokens

    def run(self) -> None:
        for _ in range(10_000):
            if not self.scheduler.runnable:
                break
            self.step()
        assert not self.scheduler.runnable
        assert set(self.ends) == set(self.texts)
        assert all(sequence.sampler.ended == 1 for sequence in self.texts)     # type: ignore[attr-defined]
