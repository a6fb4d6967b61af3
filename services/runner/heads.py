"""Where a prompt is cut in tokens: the end of the profile's head, and of what is prepared before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.runner.slots import common_prefix

Tokenize = Callable[[Sequence[str]], list[int]]
TAIL = 200          # characters at the end in which what follows may change tokens
# What somebody may go on with, so far as it can change the tokens before it: letters, digits, marks, spaces, lines.
PROBES = ("a", "A", " a", "1", " 1", "-", ".", "'s", "\n", "\n\n", " ", "  a", "\t", "é", "中", "🙂", "<", "{\"")


def head_tokens(tokenize: Tokenize, segments: Sequence[str], characters: int, prompt: list[int]) -> int:
    """How many of the `prompt`'s tokens come from the first `characters` of its text alone."""
    return common_prefix(tokenize(take(segments, characters)), prompt) if characters > 0 else 0


def settled(tokenize: Tokenize, segments: Sequence[str]) -> list[int]:
    """The tokens of a text that goes on: those that stay the same whatever follows, as far as the probes tell.

    Spaces at its end belong to the word that follows. Whoever uses the tokens compares them, so a probe that is missing
    here costs time and never a wrong answer.
    """
    tail = segments[-1][-TAIL:]
    tokens = tokenize([tail])
    futures = [tail.rstrip(" \t"), *(tail + probe for probe in PROBES)]
    kept = min(common_prefix(tokens, tokenize([future])) for future in futures)
    whole = tokenize(segments)
    return whole[:max(0, len(whole) - (len(tokens) - kept))]


def take(segments: Sequence[str], characters: int) -> list[str]:
    """The first `characters` of the text, with the same boundaries."""
    taken = []
    for segment in segments:
        if characters <= 0:
            break
        taken.append(segment[:characters])
        characters -= len(segment)
    return taken
