"""Hybrid search: the nearest vectors and the best matching words, fused by their ranks.

Reciprocal rank fusion (Cormack, Clarke, Büttcher 2009): a chunk scores the sum of weight / (60 + rank) over both lists,
whose own numbers cannot be compared. Ranks alone would make much of little: some word of a question is in almost any
text, and something is always second nearest. So a chunk counts as much as it has of the query's words, and as much as
it is as near as the nearest. A number or code in a query is meant as it is, and vectors hardly tell two of them apart:
a chunk that has it has what was asked for, whatever else it lacks. `tests/bench/bench_retrieval.py` measures what comes
of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from services.store.knowledge import Collection, Passage

K = 60                      # of the fusion: how little the first ranks stand out
DEPTH = 60                  # chunks that each half brings, at least
MOST_WORDS = 64             # of a query that are matched
LEAST_CODE = 4              # letters and digits of a word with digits that names one thing among many
Place = tuple[int, int]     # a base's and a chunk's number
# Words by which questions are put, in English and French.
_ASKING = """
a about all also am an and any are as at be been but by can could did do does for from had has have he her him his how i
if in into is it its may me might must my no not of on or our shall she should so some such than that the their them
then there these they this those to us was we were what when where which who whom whose why will with would you your
à au aux avec c'est ce ces cette comment d'un d'une dans de des du elle en est et être il ils je la le les leur ma mais
me mes mon ne nos notre nous on ou où par pas pour pourquoi qu'est-ce quand que quel quelle quelles quels qui quoi sa se
ses son sont sur ta te tes ton tu un une vos votre vous y
"""
_COMMON = frozenset(_ASKING.split())
_STRIP = "\"'`.,;:!?()[]{}<>«»„“”‚‘’…"


@dataclass(frozen=True)
class Weights:
    """How much each half counts; 0 leaves it out."""

    vector: float = 1.0
    words: float = 1.0


@dataclass(frozen=True)
class Searched:
    """A base to search, and the query's vector by its model; None: only words count."""

    name: str
    collection: Collection
    vector: bytes | None


@dataclass(frozen=True)
class Hit:
    base: str
    passage: Passage
    score: float            # 0 to 1; 1: first in both halves
    similarity: float | None        # cosine to the query, where the vectors brought it

    def shown(self) -> dict[str, Any]:
        """As it is told to clients."""
        passage = self.passage
        return {"base": self.base, "document": passage.document, "source": passage.source,
                "title": passage.document_title, "section": passage.title, "name": passage.name, "url": self.url,
                "position": {"chunk": passage.number, "start": passage.start}, "score": round(self.score, 6),
                "similarity": None if self.similarity is None else round(self.similarity, 6), "text": passage.text}

    @property
    def url(self) -> str | None:
        return self.passage.name if self.passage.name.startswith(("http://", "https://")) else None


def hybrid(bases: Sequence[Searched], query: str, top_k: int, weights: Weights = Weights()) -> list[Hit]:
    """The `top_k` passages of some bases for a query, the best first."""
    depth, words = max(DEPTH, 4 * top_k), words_of(query) if weights.words else []
    near = [(score, (at, id)) for at, base in enumerate(bases) if base.vector is not None and weights.vector
            for id, score in base.collection.near(base.vector, depth)]
    matching = [(share, (at, id)) for at, base in enumerate(bases)
                for id, share in _matching(base.collection, words, depth)]
    near.sort(key=lambda one: (-one[0], one[1]))
    matching.sort(key=lambda one: (-one[0], one[1]))
    scores = fused([(weights.vector, _nearness(near, [place for _, place in matching])),
                    (weights.words, [(place, share) for share, place in matching])])
    similar = {place: score for score, place in near}
    best = sorted(scores, key=lambda place: (-scores[place], place))[:depth]
    passages = {(at, passage.id): passage for at, base in enumerate(bases)
                for passage in base.collection.passages(id for where, id in best if where == at)}
    hits = (Hit(bases[place[0]].name, passages[place], scores[place], similar.get(place))
            for place in best if place in passages)
    return without_neighbours(hits, top_k)


def _nearness(near: list[tuple[float, Place]], others: Iterable[Place]) -> list[tuple[Place, float]]:
    """How near chunks are, the nearest being 1. `others` come after the last that was looked at, and may be as near."""
    if not near or near[0][0] <= 0:
        return [(place, 1.0) for _, place in near]
    found = {place: max(score, 0.0) / near[0][0] for score, place in near}
    last = found[near[-1][1]]
    return [*found.items(), *((place, last) for place in others if place not in found)]


def _matching(collection: Collection, words: Sequence[str], depth: int) -> list[tuple[int, float]]:
    """(chunk, share) of those that have some of the words: of all of them, or of the codes among them if that is more.
    Codes that as many chunks have as are looked at tell none of them from the others."""
    shares = dict(collection.matching(words, depth))
    codes = [word for word in words if _is_code(word)]
    having = collection.matching(codes, depth) if codes and codes != words else []
    if len(having) < depth:
        shares |= {id: max(share, shares.get(id, 0.0)) for id, share in having}
    return list(shares.items())


def _is_code(word: str) -> bool:
    return any(sign.isdigit() for sign in word) and sum(sign.isalnum() for sign in word) >= LEAST_CODE


def fused(lists: Iterable[tuple[float, list[tuple[Place, float]]]]) -> dict[Place, float]:
    """Scores of what is in some lists (each with its weight, and a weight for each entry) by reciprocal rank, as parts
    of what the first in all lists would have."""
    scores: dict[Place, float] = {}
    most = 0.0
    for weight, places in lists:
        most += weight / (K + 1)
        for rank, (place, share) in enumerate(places if weight else [], 1):
            scores[place] = scores.get(place, 0.0) + weight * share / (K + rank)
    return {place: score / most for place, score in scores.items()}


def without_neighbours(hits: Iterable[Hit], most: int) -> list[Hit]:
    """The first `most`, without those that overlap or follow a better one of the same document."""
    kept: list[Hit] = []
    for hit in hits:
        if len(kept) == most:
            break
        if not any(hit.passage.document == other.passage.document and hit.base == other.base
                   and abs(hit.passage.number - other.passage.number) <= 1 for other in kept):
            kept.append(hit)
    return kept


def words_of(query: str) -> list[str]:
    """The words to match, each once, without those that every text has, unless there are no others. What is written
    together (`AB-12/3`) stays together, as a phrase."""
    found = (word.strip(_STRIP) for word in re.split(r"\s+", query))
    words = list(dict.fromkeys(word for word in found if re.search(r"\w", word)))
    return ([word for word in words if word.lower() not in _COMMON] or words)[:MOST_WORDS]
