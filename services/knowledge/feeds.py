"""Feeds that are brought in when a prompt has certain words: `data/feeds.json`, which may be edited while serving."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Feed:
    """`when`: groups of words; a prompt matches when it has a word of each group (words match by how they begin)."""

    name: str
    url: str
    when: tuple[tuple[str, ...], ...]
    introduction: str = ""      # what is said to the model before the feed's text
    status: str = ""            # what is said to the user while it is fetched (S4.13)


class Feeds:
    """The feeds of `path`, as it is now; made from the shipped ones when it is not there. Any thread may ask."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None         # why the file is not what is used

    def match(self, prompt: str) -> list[Feed]:
        """The feeds that `prompt` asks for, in the file's order: the most particular ones first."""
        raise NotImplementedError
