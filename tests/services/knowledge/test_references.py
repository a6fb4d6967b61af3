"""Texts with where they are from, fitted into a prompt."""

from __future__ import annotations

import pytest

from services.knowledge.documents import Document
from services.knowledge.references import Reference, fitted, with_use
from tests.services.knowledge.test_ingest import World


def references(*texts):
    return [Reference.of_document(Document(f"Title {n}", text, f"https://a.example/{n}", "text/html"),
                                  f"https://a.example/{n}") for n, text in enumerate(texts, 1)]


def test_what_is_cited_is_numbered_and_keeps_to_its_budget():
    found = references("alpha " * 20, "beta " * 20, "gamma " * 20)
    whole = fitted(found, 10_000)
    assert whole.text.startswith("[1] Title 1 (https://a.example/1)\n> alpha") and "\n\n[3] " in whole.text
    assert [citation["n"] for citation in whole.citations] == [1, 2, 3]
    two = fitted(found, len(whole.text) - 1)
    assert len(two.citations) == 2 and "gamma" not in two.text and two.text == whole.text[:len(two.text)]
    one = fitted(found, 100)
    assert len(one.text) <= 100 and len(one.citations) == 1 and "\n> alpha" in one.text and one.text.endswith("[…]")
    for too_little in (10, 0, -5):
        assert fitted(found, too_little).text == "" == "".join(map(str, fitted(found, too_little).citations))
    assert fitted([], 100).citations == ()


def test_room_may_be_measured_in_tokens():
    found = references("alpha " * 20, "beta " * 20)
    assert len(fitted(found, 60, lambda text: len(text.split())).citations) == 2
    assert len(fitted(found, 40, lambda text: len(text.split())).citations) == 1


def test_many_are_fitted_with_few_measures():
    found, measured = references(*["word"] * 90), []

    def measure(text):
        measured.append(text)
        return len(text)
    assert len(fitted(found, 10_000_000, measure).citations) == 90 and len(measured) < 10


def test_a_passage_tells_where_it_is_from(tmp_path):
    world = World(tmp_path)
    world.web.pages = {"https://a.example/": "alpha beta gamma"}
    world.add("url", "https://a.example/")
    found = Reference.of_hit(world.bases.search("kAnn", ["facts"], "alpha")[0])
    assert found.document.text == "alpha beta gamma" and "text" not in found.citation
    assert {**found.citation, "score": 1, "similarity": 1, "source": 1} == {
        "base": "facts", "document": 1, "source": 1, "title": "Title of https://a.example/", "section": "Part",
        "name": "https://a.example/", "url": "https://a.example/", "position": {"chunk": 0, "start": 0}, "score": 1,
        "similarity": 1} | {"section": found.citation["section"]}
    assert found.citation.keys() == Reference.of_document(found.document, None).citation.keys()


@pytest.mark.parametrize(("answer", "named"), [
    ("", []), ("As [1] says.", [1]), ("[2, 3] and [1,2]", [1, 2, 3]), ("[x] [4] (1) [1", []), ("[0002]", [])])
def test_citations_tell_whether_they_were_used(answer, named):
    citations = [{"n": n} for n in (1, 2, 3)]
    assert [one["n"] for one in with_use(citations, answer) if one["cited"]] == named
