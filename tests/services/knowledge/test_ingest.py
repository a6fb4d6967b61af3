"""Sources on their way into a base: crawls, refreshing, failures that pass, and limits."""

from __future__ import annotations

import contextlib
import threading
import tracemalloc
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from services import wire
from services.engine.fake_words import DIMENSIONS, vector
from services.errors import BadRequest, ContextOverflow, Forbidden, NotFound, TooManyRequests, Unavailable
from services.knowledge import ingest, read
from services.knowledge.bases import Bases
from services.knowledge.documents import Document, Link, Section
from services.knowledge.index import PORTION, Indexer, Model
from services.knowledge.ingest import FIRST_WAIT, LONGEST_WAIT, MOST_TRIES, Limits, stamp
from services.knowledge.read import SourceReader, kind_of
from services.knowledge.recent import Rate
from services.store.knowledge import Source
from services.store.knowledge_sqlite import SqliteLibrary
from tests.services.knowledge.evil import Evil, page
from tests.services.web.conftest import wait_until

READY = wire.Ready(model="m.gguf", architecture="fake", n_ctx=64, n_ctx_train=64, n_slots=1, n_vocab=9, n_threads=1,
                   chat_template=None, bos="", eos="", special_tokens=[], n_embd=DIMENSIONS)


@dataclass
class Engine:
    """Words are tokens. `fail` is raised by each use until it is taken away."""

    fail: Exception | None = None
    ready = READY
    embedded: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    meanwhile: Any = None           # called by each use

    @contextlib.contextmanager
    def lease(self, spec: Any, keep: float, beat: Any) -> Any:
        beat()
        self.leases.append(spec.model)
        yield self

    def count(self, prompts: list[list[str]]) -> list[int]:
        return [len("".join(prompt).split()) for prompt in prompts]

    def embed(self, request: wire.Embed) -> wire.Vectors:
        if self.fail:
            raise self.fail
        if self.meanwhile:
            self.meanwhile()
        if (most := max(len(text.split()) for text in request.texts)) > READY.n_ctx:
            raise ContextOverflow("too long", limit=READY.n_ctx, prompt_tokens=most)
        self.embedded += request.texts
        return wire.Vectors(id=request.id, dimensions=DIMENSIONS, vectors=[vector(text) for text in request.texts],
                            tokens=[1] * len(request.texts))


@dataclass
class Web:
    """A few pages; those that are exceptions are raised."""

    pages: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    crawl_delay: float = 0.0

    def delay(self, url: str) -> float:
        return self.crawl_delay

    def read(self, url: str, **_: Any) -> Document:
        self.asked.append(url)
        page = self.pages.get(url, BadRequest(f"there is nothing at {url}"))
        if isinstance(page, list):
            page = page.pop(0)
        if isinstance(page, Exception):
            raise page
        text, *links = page.split(" -> ")
        return Document(title=f"Title of {url}", text=text, source=url, media_type="text/html",
                        links=tuple(Link(link) for link in links), sections=(Section("Part", 0, len(text)),))


class World:
    def __init__(self, folder, **limits):
        self.engine, self.web, self.time, self.charged, self.slept = Engine(), Web(), 1000.0, [], []
        (folder / "m.gguf").write_bytes(b"model")
        spec = wire.RunnerSpec(model=str(folder / "m.gguf"), n_ctx=64, parallel=1, n_threads=1, n_gpu_layers=0,
                               embedding=True)
        self.library = SqliteLibrary(folder)
        indexer = Indexer(self.engine, lambda _name, _allowed: Model("small", spec, 0, "doc: ", "query: "),
                          lambda owner, tokens: self.charged.append((owner, tokens)))
        self.reader = SourceReader(self.web, self.slept.append)
        self.stopping = False
        self.bases = Bases(self.library, indexer, self.reader, Limits(**limits), lambda: self.time,
                           lambda: self.stopping)
        self.work = self.bases._ingester.round
        self.bases._ingester.start = lambda: None       # rounds are made by the test
        self.bases.create("kAnn", "facts")

    def add(self, kind, name, payload=None, **options):
        self.bases.add("kAnn", "facts", kind, name, payload, **options)
        self.work()
        return self.bases.sources("kAnn", "facts")[-1]

    @property
    def names(self):
        return [document["name"] for document in self.bases.documents("kAnn", "facts")]

    def found(self, query):
        return [hit.passage.name for hit in self.bases.search("kAnn", ["facts"], query)]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


class Deleted(Exception):
    pass


def site(*links_of_start):
    return {"https://a.example/": " -> ".join(["start", *links_of_start]),
            "https://a.example/one": "first -> https://a.example/two -> https://a.example/",
            "https://a.example/two": "second -> https://a.example/three", "https://a.example/three": "third",
            "https://b.example/": "elsewhere"}


def test_a_crawl_follows_links_of_its_host_as_deep_and_as_many_as_it_may(world):
    world.web.pages = site("https://a.example/one", "https://b.example/", "mailto:x@y", "https://a.example/none")
    source = world.add("crawl", "https://a.example/", max_depth=1)
    assert (source["state"], source["documents"], source["chunks"]) == ("done", 2, 2)
    assert source["problems"] == ["https://a.example/none: there is nothing at https://a.example/none"]
    assert world.names == ["https://a.example/", "https://a.example/one"]
    assert "https://b.example/" not in world.web.asked
    assert world.add("crawl", "https://a.example/", max_depth=9)["documents"] == 4
    assert world.add("crawl", "https://a.example/", max_depth=9, max_pages=2)["documents"] == 2


def test_a_page_that_leads_elsewhere_is_not_taken(world):
    world.web.pages = {"https://a.example/": "start -> https://a.example/out", "https://a.example/out": "x"}
    read_page = world.web.read

    def led(url, **more):
        found = read_page(url, **more)
        return Document(found.title, found.text, "https://b.example/", "text/html") if url.endswith("out") else found
    world.web.read = led
    assert world.add("crawl", "https://a.example/")["documents"] == 1


def test_a_first_page_that_fails_is_the_sources_error(world):
    world.web.pages = {"https://a.example/": Forbidden("fetching is off", code="fetch_off")}
    for kind in ("crawl", "url"):
        source = world.add(kind, "https://a.example/")
        assert (source["state"], source["error"], source["documents"]) == ("error", "fetching is off", 0)


def test_a_crawl_waits_for_its_owners_rate(world):
    busy = TooManyRequests("slowly", retry_after=2.5)
    world.web.pages = {"https://a.example/": [busy, busy, "start"]}
    assert world.add("url", "https://a.example/")["state"] == "done" and len(world.web.asked) == 3
    assert world.slept == [1.0, 1.0, 0.5] * 2
    world.web.pages = {"https://a.example/": busy}
    assert world.add("url", "https://a.example/")["error"] == "slowly"


def test_a_crawl_reads_all_pages_however_often_it_waits_for_its_rate():
    server, clock = Evil(), [0.0]
    for number in range(12):
        server.pages[f"/{number}"] = page(f"<main>{number} <a href='/{number + 1}'>next</a></main>".encode())
    fetcher = server.fetcher()
    fetcher._rate = Rate(1, now=lambda: clock[0])
    source = Source(id="1", kind="crawl", name="http://good.test/0", options={"max_pages": 12, "max_depth": 20})

    def sleep(seconds):
        clock[0] += seconds
    found = list(SourceReader(fetcher, sleep).read(source, None, "kAnn", lambda: None))
    server.end()
    assert [type(one).__name__ for one in found] == ["Document"] * 12


def test_a_crawl_keeps_no_more_addresses_in_mind_than_it_may_read(world):
    made = []

    def wide(url, **_):
        made.append(url)
        links = tuple(Link(f"https://a.example/{len(made)}/{number}/{'x' * 1000}") for number in range(500))
        return Document(title="", text="x", source=url, media_type="text/html", links=links)
    world.web.read = wide
    source = Source(id="1", kind="crawl", name="https://a.example/", options={"max_pages": 30, "max_depth": 9})
    tracemalloc.start()
    found = sum(1 for _ in world.reader.read(source, None, "kAnn", lambda: None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == len(made) == 30 and peak < 5 << 20


def test_a_document_may_be_deleted_while_its_source_is_indexed(world):
    world.web.pages, embed, deleted = site("https://a.example/one"), world.engine.embed, []

    def embed_later(request):
        if not deleted:
            deleted.append(2)
            world.bases.delete_document("kAnn", "facts", 2)
        return embed(request)
    world.engine.embed = embed_later
    source = world.add("crawl", "https://a.example/", max_depth=9)
    assert (source["state"], source["documents"], source["indexed"]) == ("done", 3, 3)


@pytest.mark.parametrize(("leased", "leases"), [(0, 4), (60, 1)])
def test_a_model_is_let_go_between_documents_after_a_while(world, monkeypatch, leased, leases):
    monkeypatch.setattr(ingest, "LEASED", leased)
    world.web.pages = site("https://a.example/one")
    assert world.add("crawl", "https://a.example/", max_depth=9)["indexed"] == 4
    assert len(world.engine.leases) == leases


@pytest.mark.parametrize("limits", [{"documents": 1}, {"characters": 10}])
def test_what_is_read_again_takes_the_place_of_what_was_there(tmp_path, limits):
    world = World(tmp_path, **limits)
    world.web.pages = {"https://a.example/": ["old text", "new text", "far too long"]}
    assert world.add("url", "https://a.example/")["state"] == "done"

    def refreshed():
        world.bases.refresh("kAnn", "facts")
        world.work()
        return world.bases.sources("kAnn", "facts")[0]["state"]
    assert refreshed() == "done" and world.found("new") == ["https://a.example/"]
    assert refreshed() == ("error" if "characters" in limits else "done")


def test_a_crawl_waits_between_pages_as_robots_ask(world):
    world.web.pages, world.web.crawl_delay = site("https://a.example/one"), 2.5
    source = world.add("crawl", "https://a.example/", max_depth=9)
    assert (source["documents"], source["problems"]) == (4, [])
    assert world.slept == [1.0, 1.0, 0.5] * 3       # none before the first page
    world.slept.clear()
    assert world.add("url", "https://a.example/one")["state"] == "done" and world.slept == []


def test_a_host_that_wants_too_long_a_wait_is_left_after_its_first_page(world):
    world.web.pages, world.web.crawl_delay = site("https://a.example/one", "https://a.example/two"), 31
    source = world.add("crawl", "https://a.example/")
    assert (source["state"], source["documents"], world.slept) == ("done", 1, [])
    problem, = source["problems"]
    assert "robots.txt asks for 31 seconds" in problem and "2 pages that were found were not read" in problem
    world.web.crawl_delay = read.LONGEST_DELAY
    assert world.add("crawl", "https://a.example/")["documents"] == 4


def test_a_crawl_does_not_wait_for_hours(world, monkeypatch):
    monkeypatch.setattr(read, "MOST_DELAYS", 90)
    links = [f"https://a.example/{number}" for number in range(10)]
    world.web.pages = {"https://a.example/": " -> ".join(["start", *links]), **dict.fromkeys(links, "a page")}
    world.web.crawl_delay = 30
    source = world.add("crawl", "https://a.example/")
    assert (source["state"], source["documents"], sum(world.slept)) == ("done", 4, 90)
    assert "7 pages that were found were not read" in source["problems"][0]


def test_pages_of_before_stay_where_a_host_wants_longer_waits_now(world):
    world.web.pages = site("https://a.example/one")
    assert world.add("crawl", "https://a.example/", max_depth=9)["documents"] == 4
    world.web.crawl_delay = 31
    world.bases.refresh("kAnn", "facts")
    world.work()
    source, = world.bases.sources("kAnn", "facts")
    assert (source["documents"], len(source["problems"])) == (4, 1)


@pytest.mark.parametrize("waits_for", ["robots", "rate"])
def test_what_ends_a_source_is_noticed_while_it_waits(world, waits_for):
    world.web.pages, world.web.crawl_delay = site("https://a.example/one"), 30
    if waits_for == "rate":
        world.web.pages["https://a.example/"] = TooManyRequests("slowly", retry_after=50)

    def going():
        if len(world.slept) == 3:
            raise Deleted
    source = Source(id="1", kind="crawl", name="https://a.example/")
    with pytest.raises(Deleted):
        list(world.reader.read(source, None, "kAnn", going))
    assert world.slept == [1.0] * 3 and world.web.asked == ["https://a.example/"]


def test_addresses_are_read_again_by_interval_and_what_is_gone_goes(world):
    world.web.pages = site("https://a.example/one", "https://a.example/two")
    world.bases.change("kAnn", "facts", {"refresh_seconds": 60})
    world.add("crawl", "https://a.example/", max_depth=1)
    world.add("text", "note", b"a note that stays")
    embedded = len(world.engine.embedded)
    world.time += 59
    world.work()
    assert len(world.web.asked) == 3
    world.web.pages["https://a.example/"] = "start -> https://a.example/one"
    world.web.pages["https://a.example/one"] = "rewritten"
    world.time += 2
    world.work()
    assert sorted(world.names) == ["https://a.example/", "https://a.example/one", "note"]
    assert world.engine.embedded[embedded:] == ["doc: Title of https://a.example/one > Part\nrewritten"]
    assert world.found("rewritten")[0] == "https://a.example/one"
    assert "https://a.example/two" not in world.found("second")

    world.web.pages["https://a.example/"] = BadRequest("broken today")
    world.time += 61
    world.work()
    state = world.bases.sources("kAnn", "facts")[0]
    assert (state["state"], state["error"], state["documents"]) == ("error", "broken today", 2)
    asked = len(world.web.asked)
    world.work()
    assert len(world.web.asked) == asked


def test_refresh_at_once(world):
    world.web.pages = {"https://a.example/": "before"}
    world.add("url", "https://a.example/")
    world.web.pages = {"https://a.example/": "after"}
    assert world.bases.refresh("kAnn", "facts")[0]["state"] == "queued"
    world.work()
    assert world.bases.search("kAnn", ["facts"], "x")[0].passage.text == "after"


def test_what_cannot_be_done_now_waits_and_tells_why(world):
    world.engine.fail = Unavailable("the model is loading")
    source = world.add("text", "note", b"a note")
    assert source["state"] == "queued" and source["error"].endswith("the model is loading")
    assert (source["documents"], source["indexed"]) == (1, 0)
    assert source["next_try"] == stamp(world.time + FIRST_WAIT)
    world.engine.fail = None
    world.time += FIRST_WAIT
    world.work()
    source, = world.bases.sources("kAnn", "facts")
    assert (source["state"], source["error"], source["next_try"]) == ("done", None, None)
    assert world.found("note") == ["note"]
    assert world.charged and all(owner == "kAnn" for owner, _ in world.charged)


def tries(world, until=lambda source: source["state"] == "error"):
    """The seconds between tries of the only source, each made at the moment that its state tells."""
    waits = []
    while not until(source := world.bases.sources("kAnn", "facts")[0]):
        due = datetime.fromisoformat(source["next_try"].replace("Z", "+00:00")).timestamp()
        waits.append(due - world.time)
        world.time = due - 1
        before = len(world.engine.leases)
        world.work()
        assert len(world.engine.leases) == before
        world.time = due
        world.work()
        assert len(world.engine.leases) == before + 1
    return waits


def test_waits_grow_and_end_after_about_a_day(world, monkeypatch):
    days = sum(min(FIRST_WAIT * 2 ** number, LONGEST_WAIT) for number in range(MOST_TRIES - 1)) / 86400
    assert 0.8 < days < 1.2
    monkeypatch.setattr(ingest, "MOST_TRIES", 12)
    world.engine.fail = Unavailable("the model is loading")
    world.add("text", "note", b"a note")
    waits = tries(world)
    assert waits[:7] == [15, 30, 60, 120, 240, 480, 900] and set(waits[7:]) == {900}
    assert len(waits) == 11
    source, = world.bases.sources("kAnn", "facts")
    assert (source["state"], source["next_try"]) == ("error", None)
    assert source["error"] == "given up after 12 tries: the model is loading"
    world.time += 86400
    world.work()
    assert len(world.engine.leases) == 12


@pytest.mark.parametrize("anew", ["refresh", "reindex"])
@pytest.mark.parametrize("given_up", [False, True])
def test_a_refresh_or_a_reindex_tries_at_once(world, monkeypatch, anew, given_up):
    monkeypatch.setattr(ingest, "MOST_TRIES", 7)
    world.engine.fail = Unavailable("the model is loading")
    world.web.pages = {"https://a.example/": "a page"}
    world.add("text", "note", b"a note")
    tries(world, (lambda source: source["state"] == "error") if given_up else lambda source: len(
        world.engine.leases) == 5)
    waiting = world.add("url", "https://a.example/")
    assert waiting["state"] == "queued" and waiting["next_try"]
    world.engine.fail = None
    world.work()
    assert world.bases.get("kAnn", "facts")["documents"] == 2 and world.found("note") == []
    getattr(world.bases, anew)("kAnn", "facts")
    assert [one["state"] for one in world.bases.sources("kAnn", "facts")] == ["queued"] * 2
    world.work()
    assert [(one["state"], one["next_try"]) for one in world.bases.sources("kAnn", "facts")] == [("done", None)] * 2
    assert sorted(world.found("note")) == ["https://a.example/", "note"]


def test_a_reindex_leaves_what_could_not_be_read_and_indexes_what_was(world, caplog):
    world.web.pages = {"https://a.example/": "a page"}
    broken = world.add("file", "broken.pdf", b"%PDF-1.4 nonsense", media_type="application/pdf")
    world.add("url", "https://a.example/")
    world.web.pages = {}
    world.bases.refresh("kAnn", "facts")
    world.work()
    assert [one["state"] for one in world.bases.sources("kAnn", "facts")] == ["error", "error"]
    assert world.found("page") == ["https://a.example/"]
    world.bases.reindex("kAnn", "facts")
    world.work()
    left, page = world.bases.sources("kAnn", "facts")
    assert left == broken and "damaged PDF" in left["error"]
    assert (page["state"], page["problems"]) == ("done", ["there is nothing at https://a.example/"])
    assert world.found("page") == ["https://a.example/"]
    assert caplog.text == ""


@pytest.mark.parametrize("size", [64, 65, 1000, 30_000])
def test_a_query_longer_than_the_model_takes_is_read_at_its_ends(world, size):
    world.add("text", "note", b"a note")
    words = " ".join(["first", *["word"] * (size - 2), "last"])
    assert world.found(words) == ["note"]
    read = world.engine.embedded[-1].split()
    assert (read[1], read[-1]) == ("first", "last") and len(read) <= READY.n_ctx


def test_a_long_text_ends_at_once_when_the_server_stops_and_goes_on_later(world, monkeypatch):
    monkeypatch.setattr(ingest, "TELL", 0.0)

    def stop():
        world.stopping = True

    long = " ".join(f"word{number}" for number in range(10_000)).encode()
    world.engine.meanwhile = stop
    left = world.add("text", "long", long)
    assert (left["state"], left["error"], left["chunks"], len(world.engine.embedded)) == ("running", None, 0, PORTION)
    world.add("text", "short", b"a note")
    assert world.bases.get("kAnn", "facts")["pending"] == 2 and len(world.engine.embedded) == PORTION
    world.stopping, world.engine.meanwhile = False, None
    world.work()
    assert [one["state"] for one in world.bases.sources("kAnn", "facts")] == ["done"] * 2
    assert world.found("word9876")[0] == "long"


def test_tries_are_counted_anew_after_one_that_went_well(world):
    world.engine.fail = Unavailable("the model is loading")
    world.add("text", "note", b"a note")
    tries(world, lambda source: len(world.engine.leases) == 4)
    world.engine.fail = None
    world.time += 900
    world.work()
    world.engine.fail = Unavailable("died")
    world.bases.reindex("kAnn", "facts")
    world.work()
    source, = world.bases.sources("kAnn", "facts")
    assert source["next_try"] == stamp(world.time + FIRST_WAIT)


def test_a_surprise_is_told_as_little_and_logged(world, caplog):
    world.engine.fail = ZeroDivisionError("inner workings")
    source = world.add("text", "note", b"a note")
    assert source["state"] == "error" and "inner workings" not in source["error"] and "inner workings" in caplog.text


def test_a_source_that_is_deleted_while_it_is_read_leaves_nothing(world):
    def read(url, **_):
        world.bases.delete_source("kAnn", "facts", world.bases.sources("kAnn", "facts")[0]["id"])
        return Document("t", "text", url, "text/html")
    world.web.read = read
    world.bases.add("kAnn", "facts", "url", "https://a.example/")
    world.work()
    assert world.bases.sources("kAnn", "facts") == world.bases.documents("kAnn", "facts") == []


def test_a_base_that_is_deleted_while_it_is_worked_on_ends_the_work(world):
    def read(url, **_):
        world.bases.delete("kAnn", "facts")
        return Document("t", "text", url, "text/html")
    world.web.read = read
    world.bases.add("kAnn", "facts", "url", "https://a.example/")
    world.work()
    with pytest.raises(NotFound):
        world.bases.get("kAnn", "facts")


def test_threads_take_what_comes(tmp_path):
    world = World(tmp_path)
    del world.bases._ingester.start
    before = threading.active_count()
    for number in range(3):
        world.bases.add("kAnn", "facts", "file", f"{number}.txt", b"x" * 9000 if number else b"a word")
    wait_until(lambda: world.bases.get("kAnn", "facts")["pending"] == 0, 60)
    assert [one["state"] for one in world.bases.sources("kAnn", "facts")] == ["done"] * 3
    assert threading.active_count() <= before + 2


def test_limits_on_bases_pages_and_what_waits(tmp_path):
    world = World(tmp_path, bases=1, pages=10, pending=1)
    with pytest.raises(TooManyRequests):
        world.bases.create("kAnn", "second")
    world.bases.create("kBob", "second")
    with pytest.raises(BadRequest, match="KNOWLEDGE_MAX_PAGES"):
        world.bases.add("kAnn", "facts", "crawl", "https://a.example/", max_pages=11)
    world.bases.add("kAnn", "facts", "url", "https://a.example/")
    with pytest.raises(TooManyRequests):
        world.bases.add("kAnn", "facts", "url", "https://a.example/")


def test_zips_are_told_from_files():
    assert [kind_of(*one) for one in (("a.zip", ""), ("x", "application/zip"), ("a.docx", ""), ("a.txt", "text/plain"))
            ] == ["zip", "zip", "file", "file"]


def test_a_base_that_is_named_often_is_looked_up_once(world, monkeypatch):
    world.add("text", "Tides", b"the moon pulls the sea")
    found, find = [], world.bases.find
    monkeypatch.setattr(world.bases, "find", lambda owner, ref: found.append(ref) or find(owner, ref))
    assert world.bases.search("kAnn", ["facts"] * 9, "moon") and found == ["facts"]
