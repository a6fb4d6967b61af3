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
    assert found(bases[:1]) == [("one", "both"), ("one", "near"), ("one", "words"), ("one", "neither")]
    assert found(bases[:1], words=0)[:2] == [("one", "near"), ("one", "both")]
    assert found(bases[:1], vector=0) == [("one", "both"), ("one", "words")]
    assert found(bases[:1], "AB-12", vector=0) == [("one", "words")]
    assert found(bases)[:4] == [("one", "both"), ("two", "both"), ("one", "near"), ("two", "near")]
    assert found([Searched("one", bases[0].collection, None)]) == [("one", "both"), ("one", "words")]
    first, = hybrid(bases[:1], "cats", 1)
    assert first.similarity == pytest.approx(0.98, abs=0.01) and 0 < first.score <= 1 and first.url is None


class Shelf:
    """A base in which each chunk has a cosine to the query, and words."""

    def __init__(self, **chunks):
        self.cosines = {name: cosine for name, (cosine, _) in chunks.items()}
        self.words = {name: set(text.split()) for name, (_, text) in chunks.items()}
        self.names = list(chunks)

    def near(self, vector, k):
        found = [(id, self.cosines[name]) for id, name in enumerate(self.names)]
        return sorted(found, key=lambda one: -one[1])[:k]

    def matching(self, words, k):
        shares = [(id, len(self.words[name] & set(words)) / len(words)) for id, name in enumerate(self.names) if words]
        return sorted((one for one in shares if one[1]), key=lambda one: -one[1])[:k]

    def passages(self, ids):
        return [Passage(id, id, 0, 0, "", "", "", self.names[id], "") for id in ids]

    def found(self, query, **weights):
        searched = [Searched("b", self, b"")]
        return [hit.passage.name for hit in hybrid(searched, query, 5, Weights(**weights))]


def test_a_word_by_chance_does_not_count_more_than_what_is_much_nearer():
    shelf = Shelf(right=(0.44, "avocados yield"), chance=(0.30, "trees bear fruit"), far=(0.05, "stones"))
    assert shelf.found("tell fruit ready eat") == ["right", "chance", "far"]
    close = Shelf(first=(0.44, "avocados yield"), second=(0.43, "ripe fruit"), far=(0.05, "stones"))
    assert close.found("tell fruit ready eat") == ["second", "first", "far"]


def test_a_code_counts_whatever_else_is_asked():
    flights = {f"f{number}": (0.5 - number / 1000, f"gate KX{number:03}") for number in range(100)}
    shelf = Shelf(**flights)
    assert shelf.found("which gate passengers go queue KX099")[0] == "f99"
    assert shelf.found("which gate passengers go queue KX099", vector=0)[0] == "f99"
    assert shelf.found("which gate passengers go queue KX099", words=0)[0] == "f0"
    assert shelf.found("KX099")[0] == "f99"


def test_what_is_in_every_chunk_is_no_code_and_neither_is_a_short_number():
    dated = Shelf(**{f"n{number}": (0.5 - number / 1000, "2024 note") for number in range(100)},
                  best=(0.9, "sails"))
    assert dated.found("what happened harbour 2024 storm")[0] == "best"
    short = Shelf(best=(0.9, "sails"), stray=(0.3, "page 12"))
    assert short.found("how many boats sank within 12 days")[0] == "best"


def test_nothing_near_is_no_division_by_zero():
    assert Shelf(a=(0.0, "x"), b=(-0.2, "y")).found("z") == ["a", "b"]
    assert Shelf(a=(-0.1, "x"), b=(-0.2, "y")).found("y") == ["b", "a"]
