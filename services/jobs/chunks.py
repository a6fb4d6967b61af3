"""A text that does not fit in one prompt, in as few parts as it needs, all about as long (S1.22)."""

from __future__ import annotations

from math import ceil

from services.knowledge.split import EDGE, Count, split

OVERLAP = 100           # tokens of a part that are the end of the one before it
SLACK = 16              # a part may be longer than the average by a so manieth: it ends where a sentence does


def chunks(text: str, tokens: int, room: int, count: Count, overlap: int = OVERLAP) -> list[str]:
    """Parts of `text`, which has so many `tokens`, of at most `room` tokens each, or EDGE more. They are cut between
    paragraphs, lines or sentences where there are any."""
    overlap = min(overlap, room // 4)
    least = ceil(tokens / (room - overlap))
    size = ceil(tokens / least) + overlap
    most = min(room, size + size // SLACK) + EDGE
    parts = split(text, "", most, count, known=[("", 0, len(text))], overlap=overlap)
    return [part.text.strip() for part in parts]
