"""What is in memory of a knowledge base in a file: its vectors, and its words too where the file holds them sealed."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Iterable

import numpy as np

# tokens without case, accents and English endings
FTS = "USING fts5(title, text, {}tokenize = 'porter unicode61 remove_diacritics 2')"


class Loaded:
    """What is in memory of one base. `lock` guards all of it; the arrays are replaced, never changed."""

    def __init__(self, sealed: bool) -> None:
        self.lock = threading.Lock()
        self.words = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._sealed = sealed
        self.clear(0)

    def clear(self, deletions: int) -> None:
        self.deletions = deletions
        self.ids = np.empty(0, np.int64)
        self.vectors = np.empty((0, 0), np.float32)
        self.characters = 0             # of the words
        if self._sealed:
            self.words.execute("DROP TABLE IF EXISTS words")
            self.words.execute(f"CREATE VIRTUAL TABLE words {FTS.format('')}")

    @property
    def last(self) -> int:
        return int(self.ids[-1]) if self.ids.size else 0

    @property
    def size(self) -> int:
        """Bytes, about: the words are there as they are, and as an index."""
        return self.vectors.nbytes + 2 * self.characters

    def add(self, ids: list[int], vectors: list[bytes]) -> None:
        """All vectors of a base have one length: another model's come after a `clear`."""
        more = np.frombuffer(b"".join(vectors), "<f4").reshape(len(ids), -1)
        self.vectors = np.concatenate([self.vectors, more]) if self.ids.size else more
        self.ids = np.concatenate([self.ids, np.array(ids, np.int64)])

    def tell(self, texts: Iterable[tuple[int, str, str]]) -> None:
        """Chunks' numbers, titles and texts, where the file has them sealed."""
        for id, title, text in texts:
            self.words.execute("INSERT INTO words (rowid, title, text) VALUES (?, ?, ?)", (id, title, text))
            self.characters += len(title) + len(text)


def matching(db: sqlite3.Connection, phrases: list[str], count: int, k: int) -> list[tuple[int, float]]:
    """By BM25, as parts of what a chunk of common length with all the phrases has. FTS5's bm25 is below zero."""
    whole = sum(_rarity(count, *db.execute("SELECT count(*) FROM words WHERE words MATCH ?", (phrase,)).fetchone())
                for phrase in phrases)
    return [(id, min(1.0, -score / whole)) for id, score in db.execute(
        "SELECT rowid, bm25(words) AS score FROM words WHERE words MATCH ? ORDER BY score, rowid LIMIT ?",
        (" OR ".join(phrases), k))]


def _rarity(count: int, hits: int) -> float:
    """FTS5's idf of a phrase that `hits` of `count` chunks have."""
    return max(math.log((count - hits + 0.5) / (hits + 0.5)), 1e-6)
