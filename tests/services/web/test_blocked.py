"""Rows R1 to R4, R12 and R13 from outside: addresses are refused with a status, and nothing is connected to."""

from __future__ import annotations

import pytest

from tests.services.knowledge import evil
from tests.services.web.test_personas import asked

BLOCKED = ["http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/latest/meta-data/", "http://2130706433/",
           "http://127.1/", "http://[::ffff:10.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://good.example:6379/",
           "http://еxample.com/", "http://ⓛocalhost/", "http://localhost/"]
BAD = ["http://user:secret@good.example/", "http://127.0.0.1\\@good.example/", "http://good.example./", "http://[::1",
       "http://good.example/%00", "http://" + "a" * 10_000 + ".example/", "http://good.example/" + "a" * 65_536]
ROUTES = {"gpt": ("/gpt/assistant", "prompt", "{} what is it?"), "toil": ("/toil/extractor", "text", "{}")}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("url", "code"), [
    *((url, "url_blocked") for url in BLOCKED), *((url, "bad_url") for url in BAD)], ids=lambda text: ascii(text)[:40])
def test_is_refused_before_anything_is_connected_to(world, route, url, code):
    path, field, text = ROUTES[route]
    evil.connects.clear()
    response = world.call("POST", path, json={"prompt": "x", field: text.format(url)})
    assert (response.status_code, response.json["error"]["code"]) == (400, code), response.text
    assert evil.connects == [] and world.parts.engine.requests == []


@pytest.mark.parametrize("scheme", ["file:///etc/passwd", "gopher://a.example/", "ftp://a.example/", "data:text/html,x",
                                    "dict://a.example/", "jar:http://a.example!/", "//a.example/x", "a.example/x"])
def test_other_schemes_are_text_like_any_other(world, scheme):
    """Row R1: neither fetched nor opened."""
    evil.connects.clear()
    assert world.call("POST", "/gpt/assistant", json={"prompt": f"{scheme} what is it?"}).status_code == 200
    assert f"{scheme} what is it?" in asked(world) and evil.connects == []


@pytest.mark.parametrize(("path", "body"), [
    ("/answer", {"prompt": "http://127.0.0.1/ x"}), ("/gpt/assistant", {"prompt": "see http://127.0.0.1/ x"}),
    ("/toil/extractor", {"prompt": "http://127.0.0.1/ x", "text": "see http://127.0.0.1/"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "http://127.0.0.1/ x"}]})])
def test_an_address_that_is_only_said_is_never_fetched(world, path, body):
    """Row R12."""
    evil.connects.clear()
    world.call("POST", path, json=body)
    assert "http://127.0.0.1/" in asked(world) and evil.connects == []
