"""S4.14: words of a prompt choose feeds, by a file that may be edited while serving."""

import json
import os
import time

import pytest

from services.knowledge.feeds import Feeds


def names(feeds, prompt):
    return [feed.name for feed in feeds.match(prompt)]


@pytest.fixture
def feeds(tmp_path):
    return Feeds(tmp_path / "feeds.json")


def write(feeds, value):
    before = feeds.path.stat().st_mtime_ns if feeds.path.exists() else time.time_ns()
    feeds.path.write_text(value if isinstance(value, str) else json.dumps(value, indent=1))
    os.utime(feeds.path, ns=(before + 10**9, before + 10**9))


@pytest.mark.parametrize(("prompt", "name"), [
    ("What's in the news?", "CBC"), ("Canadian news", "CBC Canada"),
    ("NEWS of the government of Canada", "Government of Canada"),
    ("political news", "CBC Politics"), ("news about health", "Canada Health"), ("technology news", "CBC Technology"),
    ("gaming news", "Kotaku"), ("sports news", "CBC Sports"), ("financial news", "Financial Post"),
    ("news from Ottawa", "CBC Ottawa"), ("news in the Ottawa\n Citizen", "Ottawa Citizen"),
    ("latest Busrides articles about AI", "Busrides"), ("newest CSPS learning product", "CSPS"),
    ("courses of the school", "CSPS"), ("any open datasets?", "Open Canada"), ("new dataset", "Open Canada"),
    ("weather forecast", "Weather in Ottawa"), ("Will it rain this week?", "Weather in Ottawa"),
    ("Quelles sont les NOUVELLES ?", "La Presse")])
def test_the_seeds_prompts_choose_the_seeds_feeds(feeds, prompt, name):
    assert names(feeds, prompt)[0] == name


@pytest.mark.parametrize("prompt", ["", "hello", "the weather", "I know the weather", "a dataset", "school",
                                    "reopen the dataset",
                                    "see https://example.com/x"])
def test_other_prompts_choose_none(feeds, prompt):
    assert names(feeds, prompt) == []


def test_the_file_is_made_and_followed(feeds):
    assert names(feeds, "weather today") == ["Weather in Ottawa"]
    shipped = json.loads(feeds.path.read_text())
    assert shipped["Kotaku"]["url"] == "https://kotaku.com/rss"
    assert feeds.match("news")[0].status == "Checking the news..."
    write(feeds, {"Mine": {"url": "https://example.com/feed", "when": [["Straße"]]}})
    assert names(feeds, "weather today") == [] and names(feeds, "Die STRASSEN") == ["Mine"]
    write(feeds, {})
    assert feeds.current() == []
    feeds.path.unlink()
    assert names(feeds, "news")[0] == "CBC"


@pytest.mark.parametrize(("text", "fault"), [
    ("", "empty"), ("[]", "line 1: expected a JSON object with feeds by name"),
    ('{\n"a": 1}', "line 2: feed 'a': expected an object"),
    ('{"a": {\n"url": "ftp://x/",\n"when": [["a"]]}}', "line 2: feed 'a': url: 'ftp://x/' is not a URL"),
    ('{"a": {\n"url": "http://x.org/"}}', "line 1: feed 'a': when: missing"),
    ('{"a": {"url": "http://x.org/",\n"when": []}}', "line 2: feed 'a': when: "),
    ('{"a": {"url": "http://x.org/", "when": [["a"]],\n"wehn": 1}}', "line 2: feed 'a': wehn: unknown field"),
    ('{"a": {"url": "http://x.org/", "when": [[1]]}}', "feed 'a': when: "),
    ('{"a": {"url": "http://x.org/", "when": [["a", " "]]}}', "feed 'a': when: "), ('{"a": \n', "not JSON")])
def test_a_wrong_file_is_told_of_with_its_line(feeds, text, fault):
    assert names(feeds, "news")
    write(feeds, text)
    assert names(feeds, "news")[0] == "CBC", "the last good ones stay"
    assert fault in feeds.problem and feeds.problem.startswith(f"{feeds.path.parent.name}/feeds.json")
    write(feeds, {"Mine": {"url": "https://example.com/feed", "when": [["news"]]}})
    assert (names(feeds, "news"), feeds.problem) == (["Mine"], None)


def test_a_wrong_file_at_the_start_is_told_of_too(feeds):
    feeds.path.write_text("nonsense")
    assert feeds.match("news") == [] and "not JSON" in feeds.problem


def test_a_folder_that_cannot_be_written_has_the_shipped_ones(tmp_path):
    feeds = Feeds(tmp_path / "missing" / "feeds.json")
    assert names(feeds, "news")[0] == "CBC" and "cannot be made" in feeds.problem


def test_words_cannot_be_patterns(feeds):
    write(feeds, {"Mine": {"url": "https://example.com/feed", "when": [["(a+)+b", "c++"]]}})
    assert names(feeds, "a" * 50_000) == []
    assert names(feeds, "(A+)+B") == names(feeds, "in C++") == ["Mine"]
