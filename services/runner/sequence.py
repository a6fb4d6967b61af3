"""One request inside the runner: its tokens, how far they are processed, its text and its times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from services.runner.text import Text
from services.wire import Done


class Sampler(Protocol):
    """A request's own sampler chain. `SamplingFailed` from `sample` ends that request only."""

    whole: bool         # whether the completion may end here: always without a schema, with one when the value is whole
    closed: bool        # whether a value was closed early, because the budget of tokens was about to end it

    def sample(self, row: int) -> int:
        """Choose the token that follows batch row `row` of the last decode."""

    def close(self) -> None:
        """Free it; called once."""


class SamplingFailed(Exception):
    """No token can follow: the model's vocabulary cannot spell what the grammar demands."""


@dataclass(eq=False)
class Sequence:
    """A request from arrival to end. The scheduler alone changes it; times are seconds of the scheduler's clock."""

    id: str
    owner: str
    prompt: list[int]               # at least one token
    max_tokens: int                 # prompt and completion together fit the context
    sampler: Sampler
    text: Text
    reply: Any = None               # who waits for the answer; opaque to the scheduler
    arrived: float = 0.0
    placed: float | None = None     # got a slot
    first: float | None = None      # first token sampled
    slot: int | None = None
    cached: int = 0                 # prompt tokens whose KV was reused
    past: int = 0                   # tokens whose KV the slot holds
    ended: bool = False
    tokens: list[int] = field(init=False)   # prompt and completion

    def __post_init__(self) -> None:
        assert self.prompt and self.max_tokens > 0
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
        return self.past >= len(self.prompt)

    def accept(self, token: int, piece: bytes, end: bool, now: float) -> tuple[str, str | None]:
        """Take a sampled token; return the text to send now and the finish reason, None when it goes on."""
        self.first = self.first or now
        self.tokens.append(token)
        if end:
            return self.text.finish(), "stop"
        text = self.text.push(piece)
        if self.text.stopped:
            return text, "stop"
        if self.completion >= self.max_tokens:
            text += self.text.finish()
            return text, "stop" if self.text.stopped or self.sampler.closed else "length"
        return text, None

    def done(self, reason: str, now: float) -> Done:
        """The terminal message, with the counts and the times so far."""
        placed = self.placed if self.placed is not None else now
        first = self.first if self.first is not None else now
        return Done(id=self.id, finish_reason=reason, prompt_tokens=len(self.prompt),
                    completion_tokens=self.completion, cached_tokens=self.cached,
                    processed_tokens=max(0, min(self.past, len(self.prompt)) - self.cached),
                    queue_ms=(placed - self.arrived) * 1000, prefill_ms=(first - placed) * 1000,
                    decode_ms=(now - first) * 1000, closed=self.sampler.closed)
