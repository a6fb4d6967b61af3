"""One request inside the runner: its tokens, how far they are processed, its text and its times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from services.runner.likely import Likely
from services.runner.text import Text
from services.wire import Done

INTERACTIVE, BATCH, PREPARE = 0, 1, 2       # classes, the first before the others


class Sampler(Protocol):
    """A request's own sampler chain. `SamplingFailed` from `sample` ends that request only."""

    closed: bool        # whether a value was closed early, because the budget of tokens was about to end it

    @property
    def finished(self) -> bool:
        """Whether the value that a schema asked for is complete, so that nothing may follow. Never without one."""

    def sample(self, row: int) -> int:
        """Choose the token that follows batch row `row` of the last decode."""

    def draft(self, most: int) -> list[int]:
        """Up to `most` tokens that are almost sure to come next, because a schema leaves no choice."""

    def close(self) -> None:
        """Free it; called once."""


class Silent:
    """The sampler of a prompt that is only prepared."""

    finished, closed = False, False

    def sample(self, row: int) -> int:
        raise AssertionError(f"row {row} of a prompt that nobody asked for")

    def draft(self, most: int) -> list[int]:
        return []

    def close(self) -> None:
        """There is nothing to free."""


class Drafter(Protocol):
    """Guesses what a sequence goes on with, from its own text."""

    def draft(self, tokens: list[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow; [] for no guess."""

    def told(self, drafted: int, accepted: int) -> None:
        """So many of a draft were what the model chose."""


class SamplingFailed(Exception):
    """No token can follow: the model's vocabulary cannot spell what the grammar demands."""


@dataclass(eq=False)
class Sequence:
    """A request from arrival to end, or, of the class PREPARE, a prompt that is computed before it is asked for.

    The scheduler alone changes it; times are seconds of the scheduler's clock.
    """

    id: str
    owner: str
    prompt: list[int]               # at least one token
    max_tokens: int                 # prompt and completion together fit the context
    sampler: Sampler
    text: Text
    session: str = ""               # the owner's conversation that it belongs to; "" for none
    head: int = 0                   # tokens at the prompt's start that are the profile's: any owner may share them
    weight: float = 1.0             # of the owner
    rank: int = INTERACTIVE
    drafter: Drafter | None = None  # None: no speculation
    shown: dict[int, bytes] = field(default_factory=dict)   # special tokens that are sent as text
    likely: Likely | None = None    # None: nobody asks how likely its tokens are
    reply: Any = None               # who waits for the answer; opaque to the scheduler
    arrived: float = 0.0
    placed: float | None = None     # got a slot
    first: float | None = None      # first token sampled
    slot: int | None = None
    cached: int = 0                 # prompt tokens whose KV was reused
    past: int = 0                   # tokens whose KV the slot holds
    leader: Sequence | None = None  # computes a longer part of this prompt right now: its KV is waited for
    shared: int = 0                 # how much of it
    drafted: int = 0                # tokens guessed so far, and of them accepted
    accepted: int = 0
    told: int = 0                   # queue position told last; 0: none
    forgotten: bool = False         # its session is deleted: nothing of it stays in the slot
    ended: bool = False
    tokens: list[int] = field(init=False)   # prompt and completion

    def __post_init__(self) -> None:
        assert self.prompt and (self.max_tokens > 0 or self.rank == PREPARE)
        self.tokens = list(self.prompt)

    @property
    def completion(self) -> int:
        """Tokens sampled so far, an end-of-generation token included."""
        return len(self.tokens) - len(self.prompt)

    @property
    def pending(self) -> int:
        """Tokens known but not yet decoded: the rest of the prompt, or the one token sampled last."""
        return len(self.tokens) - self.past

    @property
    def decoding(self) -> bool:
        """Whether the next step brings the next token of the answer. One that lost its slot may have to catch up."""
        return self.pending == 1 and self.completion > 0

    @property
    def leads(self) -> bool:
        """Whether others may wait for what it computes: a prompt that gets on."""
        return self.past < len(self.prompt) and self.leader is None and self.rank != PREPARE

    @property
    def tells(self) -> bool:
        """Whether its prompt's tokens are still to be told with their log probabilities: then all of it is computed."""
        return self.likely is not None and self.likely.echo and self.likely.told < len(self.prompt)

    @property
    def room(self) -> int:
        """Tokens that may still be sampled."""
        return self.max_tokens - self.completion

    def accept(self, token: int, piece: bytes, end: bool, now: float) -> tuple[str, str | None]:
        """Take a sampled token; return the text to send now and the finish reason, None when it goes on."""
        self.first = self.first or now
        self.tokens.append(token)
        if end:
            return self.text.finish(), "stop"
        text = self.text.push(self.shown.get(token, piece))
        if self.text.stopped:
            return text, "stop"
        if self.sampler.finished or self.completion >= self.max_tokens:
            text += self.text.finish()
            return text, "stop" if self.text.stopped or self.sampler.finished else "length"
        return text, None

    def done(self, reason: str, now: float) -> Done:
        """The terminal message, with the counts and the times so far."""
        placed = self.placed if self.placed is not None else now
        first = self.first if self.first is not None else now
        return Done(id=self.id, finish_reason=reason, prompt_tokens=len(self.prompt),
                    completion_tokens=self.completion, cached_tokens=self.cached,
                    processed_tokens=max(0, min(self.past, len(self.prompt)) - self.cached),
                    queue_ms=(placed - self.arrived) * 1000, prefill_ms=(first - placed) * 1000,
                    decode_ms=(now - first) * 1000, closed=self.sampler.closed, stopped_by=self.text.stopped_by,
                    drafted_tokens=self.drafted, accepted_tokens=self.accepted)
