"""What a step decodes: chunks of sequences, and how the room for prompts is shared among them."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from services.runner.sequence import PREPARE, Sequence


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

    @property
    def wanted(self) -> int:
        """The first of its rows of which is to be known what follows: to sample it, or to tell how likely a prompt's
        token was. `rows` where there is none."""
        return 0 if self.sequence.tells else self.count - 1 if self.samples else self.rows


class DecodeFailed(Exception):
    """The batch was not decoded; the memory of the slots in it is in doubt."""


def share(room: int, prompts: list[tuple[Sequence, int]]) -> list[Chunk]:
    """Split `room` over the owners by weight, then evenly over each owner's prompts, each with the tokens it wants."""
    owned: dict[str, list[tuple[Sequence, int]]] = {}
    for sequence, wanted in prompts:
        owned.setdefault(sequence.owner, []).append((sequence, wanted))
    parts = _pour(room, [(sum(wanted for _, wanted in own), own[0][0].weight) for own in owned.values()])
    chunks = []
    for own, part in zip(owned.values(), parts, strict=True):
        counts = _pour(part, [(wanted, 1.0) for _, wanted in own])
        chunks += [Chunk(sequence, count) for (sequence, _), count in zip(own, counts, strict=True) if count]
    return chunks


def _pour(room: int, wants: list[tuple[int, float]]) -> list[int]:
    """Split `room` by weight over (demand, weight): what one does not need goes to the others. Equal wants are given
    equal parts, as long as those are not nothing: llama.cpp computes what is uneven in a pass of its own."""
    given, total = [0] * len(wants), sum(weight for _, weight in wants)
    for index in sorted(range(len(wants)), key=lambda i: wants[i][0] / wants[i][1]):
        demand, weight = wants[index]
        part = room * weight / total
        given[index] = min(demand, int(part) or ceil(part))
        room, total = room - given[index], total - weight
    return given
