"""What a robots.txt asks for is done; what it says to trip its reader is no server error."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.errors import FetchFailed
from services.knowledge import urls
from services.knowledge.robots import Robots

PAGE = urls.parse("http://good.test/a/page?x=[1]")


def robots(text: str | bytes, status: int = 200) -> Robots:
    return Robots(lambda _url, _until: (status, text.encode() if isinstance(text, str) else text))


@pytest.mark.parametrize(("said", "meant"), [
    ("Crawl-delay: 3", 3), ("crawl-delay:2.5", 3), ("CRAWL-DELAY : 0.2 # please", 1), ("Crawl-delay: 0", 0),
    ("Crawl-delay: 999999", 999999), ("Crawl-delay: -1", 0), ("Crawl-delay: soon", 0), ("Crawl-delay:", 0),
    ("Crawl-delay: ²", 0), ("Crawl-delay: %C2%B2", 0), ("Crawl-delay: 1e9", 0), ("Crawl-delay: inf", 0),
    ("Crawl-delay: " + "9" * 400, 0), ("Crawl-delay: " + "9" * 5000, 0), ("Request-rate: ²/1", 0)])
def test_delays_are_numbers_that_can_be_waited(said, meant):
    rules = robots(f"User-agent: *\n{said}\nDisallow: /private\n")
    assert rules.delay(PAGE, 0.0) == meant and rules.allow(PAGE, 0.0)
    assert not rules.allow(urls.parse("http://good.test/private/x"), 0.0)


def test_ours_counts_before_everybodys():
    rules = robots("User-agent: *\nCrawl-delay: 9\nDisallow: /\n\nUser-agent: parley\nCrawl-delay: 1\nDisallow: /b\n")
    assert rules.delay(PAGE, 0.0) == 1 and rules.allow(PAGE, 0.0)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_who_cannot_say_is_not_asked_for_pages(status):
    with pytest.raises(FetchFailed):
        robots("", status).allow(PAGE, 0.0)
    assert robots("User-agent: *\nDisallow: /", 404).allow(PAGE, 0.0)


def test_rules_that_cannot_be_understood_stop_the_page():
    with pytest.raises(FetchFailed, match="cannot be understood"):
        robots("User-agent: *\nDisallow: //[\n").allow(PAGE, 0.0)


LINES = st.lists(st.one_of(
    st.text(max_size=30), st.builds("{}: {}".format, st.sampled_from(
        ["User-agent", "Disallow", "Allow", "Crawl-delay", "Request-rate", "Sitemap"]),
        st.one_of(st.text(max_size=30), st.sampled_from(["*", "Parley", "//[", "/%ff", "1/²", "٣", "1/0", "http://[::"])))),
    max_size=12).map("\n".join)


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(LINES, st.binary(max_size=200)))
@example(text="User-agent: *\nCrawl-delay: ٣")
def test_no_text_is_a_surprise(text):
    rules = robots(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    try:
        assert rules.allow(PAGE, 0.0) in (True, False) and rules.delay(PAGE, 0.0) >= 0
    except FetchFailed:
        pass
