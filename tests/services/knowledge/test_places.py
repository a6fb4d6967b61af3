"""Where can be looked: knowledge bases, feeds, wikis; and by which names."""

from __future__ import annotations

import json

import pytest

from services.errors import NotFound
from services.knowledge import places
from services.knowledge.documents import Document, Link, Section
from services.knowledge.feeds import Feeds
from services.knowledge.fetch import Page
from services.knowledge.places import Places
from tests.services.knowledge.test_ingest import World

API = "https://en.wiki.example/w/rest.php"
FEED = "https://news.example/feed"


class Web:
    """A feed with two entries, and a wiki with one article."""

    def __init__(self, on=True):
        self.on, self.asked, self.found = on, [], None

    def get(self, url, *, polite=True, **_):
        self.asked.append((url, polite))
        pages = [{"key": "Tide/Sea", "title": "Tide", "description": "rise and fall", "excerpt": "of sea levels"},
                 {"key": "Moon", "title": None, "description": None}]
        return Page(url, "application/json", None, self.found or json.dumps({"pages": pages}).encode())

    def read(self, url, *, polite=True, **_):
        self.asked.append((url, polite))
        if url != FEED:
            return Document("Tide", "the whole article", url, "text/html")
        text = "## News\n\nRain\n\nIt rains.\n\nStrike\n\nThe ferry does not go."
        return Document("News", text, url, "application/rss+xml", (Link("https://news.example/2", "Strike"),),
                        (Section("Rain", 9, 24), Section("Strike", 24, len(text))))


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    (tmp_path / "feeds.json").write_text(json.dumps({"Town news": {
        "url": FEED, "when": [["news"]], "introduction": "The latest of the town is:"}}))
    world.fetched = Web()
    world.places = lambda web=world.fetched: Places(world.bases, Feeds(tmp_path / "feeds.json"), web, (API,))
    return world


def called(there):
    return [place.name for place in there]


def test_all_that_a_key_may_look_in(world):
    assert called(world.places().of("kAnn")) == ["Town news", "en.wiki.example"]      # an empty base helps nobody
    world.add("text", "Tides", b"the moon pulls the sea")
    assert called(world.places().of("kAnn")) == ["facts", "Town news", "en.wiki.example"]
    assert world.places().of("kAnn")[0].about == "documents such as Tides"
    assert world.places().of("kAnn")[1].about == "a feed. The latest of the town is"
    assert called(world.places().of("kBob")) == ["Town news", "en.wiki.example"]
    assert called(world.places(Web(on=False)).of("kAnn")) == ["facts"]


def test_places_are_named_by_name_or_domain(world):
    world.add("text", "Tides", b"the moon pulls the sea")
    there = world.places()
    assert called(there.of("kAnn", names=["FACTS"])) == ["facts"]
    assert called(there.of("kAnn", names=["wiki.example", "news.example"])) == ["Town news", "en.wiki.example"]
    with pytest.raises(NotFound, match=r"no place .iki\.example. to look in; there are: facts, Town news, en\.wiki"):
        there.of("kAnn", names=["iki.example"])
    with pytest.raises(NotFound, match="no knowledge base secret"):
        there.of("kAnn", ["secret"])


def test_others_share_no_more_than_a_model_can_be_offered(world, monkeypatch):
    monkeypatch.setattr(places, "MOST_OFFERED", 3)
    world.add("text", "Tides", b"the moon pulls the sea")
    for number in range(5):
        world.bases.create("kMal", f"a{number}", shared=True)
        world.bases.add("kMal", f"a{number}", "text", "Spam", b"spam")
    assert called(world.places().of("kAnn"))[:3] == ["facts", "a0@kMal", "a1@kMal"]
    assert len(world.places().of("kAnn")) == 3 + 2
    assert called(world.places().of("kAnn", names=["a4@kMal"])) == ["a4@kMal"]
    assert called(world.places().of("kAnn", ["facts", "facts"], ["facts"])) == ["facts"]


def test_a_base_is_searched_for_its_reader(world):
    world.add("text", "Tides", b"the moon pulls the sea")
    found, = world.places().of("kAnn", ["facts"], ["facts"])[0].find("moon")
    assert found.reference.document.text == "the moon pulls the sea" and found.reference.citation["base"] == "facts"


def test_a_feeds_entries_come_by_the_words_that_are_looked_for(world):
    feed, = world.places().of("kAnn", names=["Town news"])
    titles = [(one.reference.document.title, one.reference.citation["url"]) for one in feed.find("is there a ferry?")]
    assert titles == [("Strike", "https://news.example/2"), ("Rain", FEED)]
    assert feed.find("anything")[0].reference.document.title == "Rain"


def test_a_wiki_is_searched_by_its_interface_and_read_whole(world):
    wiki, = world.places().of("kAnn", names=["wiki.example"])
    first, second = wiki.find("tides & moon")
    assert world.fetched.asked == [(f"{API}/v1/search/page?limit=6&q=tides%20%26%20moon", False)]
    assert first.reference.document.text == "rise and fall. of sea levels" and second.reference.document.title == "Moon"
    assert first.reference.citation["url"] == "https://en.wiki.example/w/index.php?title=Tide/Sea"
    assert first.read().text == "the whole article"
    assert world.fetched.asked[1:] == [(f"{API}/v1/page/Tide%2FSea/html", False)]


@pytest.mark.parametrize("strange", [b"[]", b'{"pages": [1]}', b'{"pages": {"a": 1}}', b"\xff", b"[" * 9999])
def test_an_interface_that_answers_something_else_finds_nothing(world, strange):
    world.fetched.found = strange
    assert world.places().of("kAnn", names=["wiki.example"])[0].find("x") == []
