"""What every store of knowledge bases must do; each back-end's tests inherit it."""

from __future__ import annotations

import struct
import threading
from dataclasses import replace

import pytest

from services.errors import BadRequest, Conflict, NotFound
from services.store.knowledge import DONE, QUEUED, Chunk, Collection, Document, Library, Source


def vector(*numbers: float) -> bytes:
    length = sum(number * number for number in numbers) ** 0.5
    return struct.pack(f"<{len(numbers)}f", *(number / length for number in numbers))


def filled(base: Collection, **texts: tuple[str, bytes]) -> dict[str, int]:
    """Documents of one chunk each; their ids by name."""
    base.add_source(Source(id="s", kind="text", name="some"))
    found = {}
    for name, (text, numbers) in texts.items():
        found[name] = base.put_document(Document(title=name.title(), name=name, text=text, source="s"))
        assert base.put_chunks(found[name], [Chunk(0, 0, name.title(), text, numbers)])
    return found


def names(base: Collection, hits: list[tuple[int, float]]) -> list[str]:
    return [passage.name for passage in base.passages(id for id, _ in hits)]


class KnowledgeContract:
    """Subclasses give the fixture `library`."""

    @pytest.fixture
    def base(self, library: Library) -> Collection:
        return library.create("0", "facts", {"profile": "small"})

    def test_bases_are_made_listed_and_deleted(self, library):
        library.create("0", "b", {"n": 1})
        library.create("0", "a", {"n": 2})
        library.create("kOther", "a", {"n": 3})
        assert library.names() == [("0", "a"), ("0", "b"), ("kOther", "a")]
        assert [library.open(*one).about()["n"] for one in library.names()] == [2, 1, 3]
        with pytest.raises(Conflict):
            library.create("0", "a", {})
        assert library.open("0", "a").about() == {"n": 2}
        library.delete("0", "a")
        assert library.names() == [("0", "b"), ("kOther", "a")]
        for act in (lambda: library.open("0", "a"), lambda: library.delete("0", "a"), lambda: library.open("x", "b")):
            with pytest.raises(NotFound):
                act()
        for wrong in ("", "../x", "a/b", "a.b", "x" * 65, "é", "a\n"):
            with pytest.raises(BadRequest):
                library.create("0", wrong, {})
            with pytest.raises(BadRequest):
                library.open(wrong, "a")

    def test_a_base_that_was_deleted_is_not_found_by_who_has_it_open(self, library, base):
        ids = filled(base, one=("a text", vector(1, 0)))
        library.delete("0", "facts")
        for act in (base.about, base.size, base.sources, lambda: base.near(vector(1, 0), 3),
                    lambda: base.matching(["text"], 3), lambda: base.put_chunks(ids["one"], [])):
            with pytest.raises(NotFound):
                act()
        fresh = library.create("0", "facts", {})
        assert fresh.sources() == [] and fresh.near(vector(1, 0), 3) == [] and fresh.matching(["text"], 3) == []

    def test_about_can_be_replaced(self, library, base):
        base.describe(lambda about: {**about, "shared": ["k1"]})
        assert library.open("0", "facts").about() == {"profile": "small", "shared": ["k1"]}

    def test_sources_keep_their_order_state_and_payload(self, base):
        one = Source(id="one", kind="file", name="a.txt", options={"x": 1}, added="then")
        base.add_source(one, b"\0\xffbytes")
        base.add_source(Source(id="two", kind="url", name="https://example.org/"))
        assert base.sources("one") == [one] and base.sources("none") == []
        assert base.sources()[0] == one and [source.id for source in base.sources()] == ["one", "two"]
        assert (base.payload("one"), base.payload("two"), base.payload("three")) == (b"\0\xffbytes", None, None)
        done = replace(one, state=DONE, task="", problems=("b.bin: not text",))
        assert base.size().pending == 2
        assert base.update_source(done) and base.payload("one") and base.update_source(done, keep_payload=False)
        assert base.sources()[0] == done and base.payload("one") is None
        assert (base.size().sources, base.size().pending) == (2, 1)
        assert not base.update_source(replace(done, id="three"))
        base.delete_source("one")
        assert [source.id for source in base.sources()] == ["two"]
        with pytest.raises(NotFound):
            base.delete_source("one")

    def test_documents_are_replaced_only_where_they_differ(self, base):
        ids = filled(base, one=("first text", vector(1, 0)), two=("second", vector(0, 1)))
        same = Document(title="One", name="one", text="first text", source="s")
        assert base.put_document(same) == ids["one"] and base.to_index("s") == []
        assert base.document(ids["one"]).text == "first text"
        new = base.put_document(replace(same, text="other words"))
        assert new not in (0, *ids.values()) and base.to_index("s") == [new] and base.unindexed() == {"s"}
        assert [(document.id, document.chunks, document.indexed, document.text) for document in base.documents()] == [
            (ids["two"], 1, True, ""), (new, 0, False, "")]
        assert base.matching(["first"], 5) == [] and names(base, base.near(vector(1, 0), 5)) == ["two"]
        assert base.put_document(replace(same, source="gone")) == 0
        assert not base.put_chunks(ids["one"], [Chunk(0, 0, "", "late", vector(1, 0))])
        assert base.matching(["late"], 5) == []

    def test_what_is_deleted_is_not_found_again(self, base):
        ids = filled(base, one=("apple pie", vector(1, 0)), two=("apple juice", vector(1, 1)))
        assert len(base.near(vector(1, 0), 5)) == 2
        base.delete_document(ids["one"])
        assert names(base, base.near(vector(1, 0), 5)) == names(base, base.matching(["apple"], 5)) == ["two"]
        for act in (lambda: base.delete_document(ids["one"]), lambda: base.document(ids["one"])):
            with pytest.raises(NotFound):
                act()
        base.delete_source("s")
        assert base.documents() == [] and base.near(vector(1, 0), 5) == [] and base.matching(["apple"], 5) == []
        assert base.size() == type(base.size())()

    def test_the_nearest_come_first_with_their_cosine(self, base):
        filled(base, east=("e", vector(1, 0)), north=("n", vector(0, 1)), northeast=("ne", vector(1, 1)),
               west=("w", vector(-1, 0)))
        hits = base.near(vector(1, 0.1), 3)
        assert names(base, hits) == ["east", "northeast", "north"]
        assert [round(score, 3) for _, score in hits] == [0.995, 0.774, 0.1]
        assert base.near(vector(1, 0, 0), 3) == []

    def test_words_match_in_any_form_and_rare_ones_count_more(self, base):
        filled(base, stars=("The observatory was observing stars", vector(1, 0)),
               river=("The river was flooding the valley", vector(0, 1)),
               café=("The café was closed", vector(1, 1)), code=("Part AB-12 was replaced", vector(1, 2)),
               other=("Part 12 of AB was kept", vector(2, 1)))
        def found(*words):
            return names(base, base.matching(words, 5))
        assert found("observes") == ["stars"] and found("floods") == ["river"]
        assert found("CAFE") == ["café"] and found("AB-12") == ["code"]
        assert found("was", "rivers")[0] == "river"
        (_, whole), = base.matching(["stars", "observing"], 5)
        (_, half), = base.matching(["stars", "zebras"], 5)
        assert 0.8 < whole <= 1.0 and 0.2 < half < 0.6
        assert found("nothing") == found() == found("!?", '"', "--") == []
        for hostile in ('"', 'x" OR "the', "NEAR(", "a*", "title:x", "(", "' ; DROP TABLE chunks", "%s", "?", ":*",
                        "&|!", "\0", "riv\0er"):
            base.matching([hostile, "river"], 5)
        assert found("river") == ["river"]

    def test_zero_bytes_do_no_harm(self, base):
        base.add_source(Source(id="s", kind="text", name="t\0"))
        id = base.put_document(Document(title="A\0 title", name="n\0", text="a text\0", source="s"))
        assert base.put_chunks(id, [Chunk(0, 0, "A\0 title", "a text\0", vector(1, 0))])
        assert names(base, base.matching(["text"], 1)) == ["n\0"] and base.document(id).text.startswith("a text")
        assert base.sources("other\0") == []
        with pytest.raises(NotFound):
            base.delete_source("other\0")

    def test_titles_are_matched_too(self, base):
        filled(base, zeppelin=("It flies.", vector(1, 0)), boat=("It swims.", vector(0, 1)))
        assert names(base, base.matching(["Zeppelins"], 5)) == ["zeppelin"]

    def test_passages_say_where_they_stand(self, base):
        base.add_source(Source(id="s", kind="url", name="https://example.org/"))
        id = base.put_document(Document(title="Page", name="https://example.org/", text="one two", source="s"))
        base.put_chunks(id, [Chunk(0, 0, "Page", "one", vector(1, 0)), Chunk(1, 4, "Page > Two", "two", vector(0, 1))])
        (chunk, _), = base.matching(["two"], 1)
        passage, = base.passages([chunk, 999])
        assert (passage.document, passage.number, passage.start, passage.title, passage.text) == (
            id, 1, 4, "Page > Two", "two")
        assert (passage.document_title, passage.name, passage.source) == ("Page", "https://example.org/", "s")

    def test_another_model_begins_anew(self, base):
        ids = filled(base, one=("apple", vector(1, 0)), two=("pear", vector(0, 1)))
        assert len(base.near(vector(1, 0), 2)) == 2
        base.forget_chunks({"profile": "large"})
        assert base.about() == {"profile": "large"} and base.to_index("s") == sorted(ids.values())
        assert base.near(vector(1, 0), 2) == [] and base.size().chunks == 0 and base.size().documents == 2
        assert [(source.state, source.task) for source in base.sources()] == [(QUEUED, "read")]
        assert not base.put_chunks(ids["two"], [Chunk(0, 0, "Two", "pear", vector(0, 1))], {"profile": "small"})
        assert base.put_chunks(ids["two"], [Chunk(0, 0, "Two", "pear", vector(0, 1, 0))], {"profile": "large"})
        assert names(base, base.near(vector(0, 1, 0), 2)) == ["two"] and base.near(vector(1, 0), 2) == []

    def test_one_at_most_works_on_it(self, library, base):
        again = library.open("0", "facts")
        with base.held() as mine:
            assert mine
            with again.held() as theirs:
                assert not theirs
        with again.held() as theirs:
            assert theirs

    def test_many_write_and_search_at_once(self, library, base):
        base.add_source(Source(id="s", kind="text", name="some"))
        failed: list[Exception] = []

        def write(number: int) -> None:
            try:
                mine = library.open("0", "facts")
                for n in range(5):
                    id = mine.put_document(Document(title="t", name=f"{number}-{n}", text="x", source="s"))
                    mine.put_chunks(id, [Chunk(0, 0, "t", f"word{number}", vector(1, number + 1))])
                    assert mine.matching([f"word{number}"], 9) and mine.near(vector(1, number + 1), 3)
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed and len(base.near(vector(1, 0), 100)) == 20 and base.size().chunks == 20
