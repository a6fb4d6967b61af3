"""Rows R1 to R4 and R13: one parser, which refuses whatever another could understand otherwise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import BadRequest
from services.knowledge import urls

GOOD = {
    "http://example.com": "http://example.com/",
    "HTTPS://Example.COM:443/A?b=c#d": "https://example.com/A?b=c",
    "http://example.com:80/": "http://example.com/",
    "http://example.com:443/": "http://example.com:443/",
    "http://example.com?q": "http://example.com/?q",
    "http://xn--bcher-kva.example/": "http://xn--bcher-kva.example/",
    "https://fr.wikipedia.org/wiki/Québec": "https://fr.wikipedia.org/wiki/Qu%C3%A9bec",
    "http://93.184.216.34/": "http://93.184.216.34/",
    "http://[2606:2800:0220:1::1]/": "http://[2606:2800:220:1::1]/",
    "http://a-b.example/%7Ex/{y}|z": "http://a-b.example/%7Ex/%7By%7D%7Cz",
    "http://example.com/a%0d%0ab": "http://example.com/a%0d%0ab",
}
BAD = {
    "bad_url": [
        "", "x", "//example.com", "example.com", "file:///etc/passwd", "gopher://example.com/", "ftp://example.com/",
        "data:text/html,x", "dict://example.com:11211/", "jar:http://example.com!/", "javascript:alert(1)",
        "http:/example.com", "http:example.com", "http://", "http:///x", "http://user@example.com/",
        "http://user:secret@example.com/", "http://example.com@127.0.0.1/", "http://example.com./",
        "http://127.0.0.1./", "http://127.0.0.1\\@example.com/", "http://example.com\\.evil/", "http://exa\tmple.com/",
        "http://example.com/\r\nHost: x", "http://example.com/ x", " http://example.com/", "http://example.com/%00",
        "http://example.com:/", "http://example.com:0/", "http://example.com:99999/", "http://example.com:8x/",
        "http://[::1", "http://[::1%25eth0]/", "http://[1.2.3.4]/", "http://[v1.x]/", "http://::1/",
        "http://example.com/\u202e", "http://a\u200bb.example/", "http://" + "a" * 10_000 + "/",
        "http://example.com/" + "a" * 65_536, "http://example.com/\ud800",
    ],
    "url_blocked": [
        "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://0/",
        "http://127.0.0.1.0x7f/", "http://0x7f.1/", "http://１２７.0.0.1/", "http://ⓛocalhost/", "http://127。0。0。1/",
        "http://еxample.com/", "http://bücher.example/", "http://ex%61mple.com/", "http://127.0.0.1%00.example/",
        "http://exa mple.com/".replace(" ", "!"), "http://-a.example/", "http://a_b.example/", "http://a..example/", "http://256.1.1.1/",
        "http://1.2.3.4.5/", "http://example.0x/", "http://" + "a" * 64 + ".example/",
    ],
}


@pytest.mark.parametrize(("text", "meant"), GOOD.items())
def test_a_good_url_is_one_for_everybody(text, meant):
    assert str(urls.parse(text)) == meant
    assert urls.parse(meant) == urls.parse(text)


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in BAD.items() for text in texts],
                         ids=lambda value: ascii(value)[:60])
def test_what_is_in_doubt_is_refused(code, text):
    with pytest.raises(BadRequest) as caught:
        urls.parse(text)
    assert (caught.value.status, caught.value.code) == (400, code)
    assert len(caught.value.message) < 500 and caught.value.message.isprintable()


@pytest.mark.parametrize(("reference", "meant"), [
    ("/b?c", "https://example.com/b?c"), ("b", "https://example.com/x/b"), ("../b", "https://example.com/b"),
    ("?q", "https://example.com/x/y?q"), ("#top", "https://example.com/x/y"), ("//other.example/z",
    "https://other.example/z"),
    ("http://other.example", "http://other.example/"), ("", "https://example.com/x/y")])
def test_references_lead_from_where_they_are(reference, meant):
    assert str(urls.join(urls.parse("https://example.com/x/y"), reference)) == meant


@pytest.mark.parametrize("reference", ["file:///etc/passwd", "javascript:alert(1)", "mailto:a@b.c", "//user@evil/",
                                       "\\\\evil\\x", "//evil\\@good/", "http:\n//x", "//127.1/", "http://[::1/"])
def test_references_are_refused_as_urls_are(reference):
    with pytest.raises(BadRequest):
        urls.join(urls.parse("https://example.com/x/y"), reference)


PIECES = st.sampled_from(["http://", "https://", "//", "/", "\\", "@", ":", "127.0.0.1", "[::1]", "localhost", "#",
                          "evil.com", "?", "%00", ".", "80", "\t", "\u3002", "é", "0x7f", " ", "a", "%2f", "[", "]"])


@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=8).map("".join),
                 st.lists(PIECES, max_size=8).map(lambda pieces: "http://" + "".join(pieces))))
def test_whatever_is_taken_means_the_same_when_read_again(text):
    try:
        url = urls.parse(text)
    except BadRequest as error:
        assert error.code in ("bad_url", "url_blocked")
        return
    written = str(url)
    assert urls.parse(written) == url
    assert written.isascii() and written.isprintable() and " " not in written and "\\" not in written
    assert "@" not in url.authority and url.target.startswith("/") and "#" not in url.target
    assert url.host == url.host.lower() and not url.host.endswith(".")
