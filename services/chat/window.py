"""The window: which of a session's interactions go along with the new text (S5.15; row G1).

The last `k`, and of those as many of the newest as leave room for an answer. Whole ones are dropped, oldest first; what
is stored is never touched. The runner is asked to count only when the prompt's bytes do not already show that it fits,
since a token is at least one byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.chat.messages import Interaction
from services.errors import ContextOverflow

MAX_BYTES = 4 << 20         # of the earlier turns that are considered
PROBES = 8                  # prompts that are counted at once

Build = Callable[[Sequence[Interaction]], list[str]]
Count = Callable[[list[list[str]]], list[int]]


@dataclass(frozen=True)
class Window:
    """A prompt that fits. `used`, `dropped`: interactions of the last k."""

    prompt: list[str]
    used: int
    dropped: int


def exchanges(history: Sequence[Interaction]) -> list[Interaction]:
    """Each question with its answer, and with all calls of tools and their results in between as a part of it: a result
    means nothing without the call, nor a call without the question."""
    found: list[Interaction] = []
    for one in history:
        if found and not one.asks:
            found[-1] = Interaction((*found[-1].messages, *one.asked), one.answer)
        else:
            found.append(one)
    return found


def limit(n_ctx: int, max_tokens: int) -> int:
    """Tokens that a prompt may have: the answer keeps what it may need, at most a quarter of the context."""
    return n_ctx - min(max_tokens, n_ctx // 4)


def fit(build: Build, earlier: Sequence[Interaction], n_ctx: int, max_tokens: int, count: Count) -> Window:
    """The longest window of `earlier` (the last k) that fits. Raises `ContextOverflow` with the counts when the new
    text does not fit alone."""
    most = limit(n_ctx, max_tokens)
    newest = _newest(earlier)
    prompts: dict[int, list[str]] = {}

    def prompt(turns: int) -> list[str]:
        if turns not in prompts:
            prompts[turns] = build(newest[len(newest) - turns:])
        return prompts[turns]

    used = len(newest)
    if not _surely_fits(prompt(used), most):
        used = _longest(prompt, len(newest), most, n_ctx, count)
    return Window(prompt(used), used, len(earlier) - used)


def by_size(known: list[str], tokens: int) -> Count:
    """Counts texts like `known`, which has so many tokens, by their bytes."""
    share = tokens / max(1, _size(known))
    return lambda prompts: [round(_size(prompt) * share) for prompt in prompts]


def _size(prompt: list[str]) -> int:
    return sum(len(segment.encode()) for segment in prompt)


def _newest(earlier: Sequence[Interaction]) -> Sequence[Interaction]:
    left, start = MAX_BYTES, len(earlier)
    while start and (left := left - earlier[start - 1].size) >= 0:
        start -= 1
    return earlier[start:]


def _surely_fits(prompt: list[str], most: int) -> bool:
    """Without counting: each segment may bring a space of its own, and the whole a BOS token."""
    return _size(prompt) + len(prompt) + 1 <= most


def _longest(prompt: Callable[[int], list[str]], turns: int, most: int, n_ctx: int, count: Count) -> int:
    """The most interactions, up to `turns`, whose prompt has at most `most` tokens. More turns are more tokens."""
    fits, too_many = -1, turns + 1
    probes = sorted({0, turns})
    while probes:
        for probe, tokens in zip(probes, count([prompt(probe) for probe in probes]), strict=True):
            if tokens <= most:
                fits = max(fits, probe)
            elif probe == 0:
                raise ContextOverflow(
                    f"the prompt has {tokens} tokens without any history; of the context of {n_ctx} tokens {most} are "
                    "for the prompt", param="prompt", prompt_tokens=tokens, limit=most, n_ctx=n_ctx)
            else:
                too_many = min(too_many, probe)
        probes = _between(fits, too_many)
    return fits


def _between(low: int, high: int) -> list[int]:
    """Up to PROBES numbers, evenly between `low` and `high` and neither of them."""
    inside = high - low - 1
    steps = min(inside, PROBES)
    return sorted({low + (index + 1) * (inside + 1) // (steps + 1) for index in range(steps)})
