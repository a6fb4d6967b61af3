"""Two lists of chunks to one, by their ranks."""

from __future__ import annotations

import pytest

from services.knowledge.search import Hit, Searched, Weights, fused, hybrid, without_neighbours, words_of
from services.store.knowledge import Chunk, Document, Passage, Source
from services.store.knowledge_sqlite import SqliteLibrary
from tests.services.store.knowledge_contract import vector


def test_who_is_first_in_both_lists_has_score_one():
    scores = fused([(1.0, [((0, 7), 1.0), ((0, 8), 1.0)]), (1.0, [((0, 7), 1.0), ((0, 9), 0.5)])])
    assert scores[0, 7] == 1.0 and scores[0, 8] == 2 * scores[0, 9] == pytest.approx(61 / 62 / 2)
    assert fused([(0.0, [((0, 1), 1.0)]), (2.0, [((0, 2), 1.0)])]) == {(0, 2): 1.0}
    assert fused([(1.0, []), (1.0, [])]) == {}


def test_words_keep_what_is_written_together():
    assert words_of('What is "AB-12/3", really? (AB-12/3) … !!') == ["AB-12/3", "really"]
    assert words_of("What is it? Qu'est-ce que c'est") == ["What", "is", "it", "Qu'est-ce", "que", "c'est"]
    assert len(words_of(" ".join(map(str, range(500))))) == 64


def hit(document, number, base="b"):
    return Hit(base, Passage(0, document, number, 0, "", "", "", "", ""), 1.0, None)


def test_neighbours_of_a_better_one_are_left_out():
    hits = [hit(1, 3), hit(1, 4), hit(1, 2), hit(1, 5), hit(2, 3), hit(1, 3, "other"), hit(3, 0)]
    kept = [(one.base, one.passage.document, one.passage.number) for one in without_neighbours(hits, 4)]
    assert kept == [("b", 1, 3), ("b", 1, 5), ("b", 2, 3), ("other", 1, 3)]


def test_both_halves_bring_theirs(tmp_path):
    library = SqliteLibrary(tmp_path)
    texts = {"near": ("about felines", vector(1, 0)), "words": ("the cat AB-12", vector(0, 1)),
             "both": ("a cat", vector(1, 0.2)), "neither": ("stones", vector(-1, 0))}
    bases = []
    for name in ("one", "two"):
        base = library.create("0", name, {})
        base.add_source(Source(id="s", kind="text", name="s"))
        for called, (text, numbers) in texts.items():
            id = base.put_document(Document(title=called, name=called, text=text, source="s"))
            base.put_chunks(id, [Chunk(0, 0, called, text, numbers)])
        bases.append(Searched(name, base, vector(1, 0)))

    def found(bases, query="cats", **weights):
        return [(one.base, one.passage.name) for one in hybrid(bases, query, 5, Weights(**weights))]
    assert found(bases[:1]) == [("one", "both"), ("one", "words"), ("one", "near"), ("one", "neither")]
    assert found(bases[:1], words=0)[:2] == [("one", "near"), ("one", "both")]
    assert found(bases[:1], vector=0) == [("one", "both"), ("one", "words")]
    assert found(bases[:1], "AB-12", vector=0) == [("one", "words")]
    assert found(bases)[:4] == [("one", "both"), ("two", "both"), ("one", "words"), ("two", "words")]
    assert found([Searched("one", bases[0].collection, None)]) == [("one", "both"), ("one", "words")]
    first, = hybrid(bases[:1], "cats", 1)
    assert first.similarity == pytest.approx(0.98, abs=0.01) and 0 < first.score <= 1 and first.url is None
