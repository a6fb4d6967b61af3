"""Where a prompt is cut in tokens: the end of the profile's head, and of what is prepared before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.runner.slots import common_prefix

Tokenize = Callable[[Sequence[str]], list[int]]
# What somebody may go on with, so far as it can change the tokens before it: letters, digits, marks, spaces, lines.
PROBES = ("a", "A", " a", "1", " 1", "-", ".", "'s", "\n", "\n\n", " ", "  a", "\t", "é", "中", "🙂", "<", "{\"")


def head_tokens(tokenize: Tokenize, segments: Sequence[str], characters: int, prompt: list[int]) -> int:
    """How many of the `prompt`'s tokens come from the first `characters` of its text alone."""
    return common_prefix(tokenize(take(segments, characters)), prompt) if characters > 0 else 0


def settled(tokenize: Tokenize, segments: Sequence[str]) -> list[int]:
    """The tokens of a text that goes on: those that stay the same whatever follows, as far as the probes tell.

    Whoever uses them compares tokens, so a probe that is missing here costs time and never a wrong answer.
    """
    tokens = tokenize(segments)
    kept = len(tokens)
    for probe in PROBES:
        kept = min(kept, common_prefix(tokens, tokenize([*segments[:-1], segments[-1] + probe])))
    return tokens[:kept]


def take(segments: Sequence[str], characters: int) -> list[str]:
    """The first `characters` of the text, with the same boundaries."""
    taken = []
    for segment in segments:
        if characters <= 0:
            break
        taken.append(segment[:characters])
        characters -= len(segment)
    return taken
