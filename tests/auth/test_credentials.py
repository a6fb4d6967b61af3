"""Rows A3 and A4."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auth.credentials import credential, refuse_in_query
from services.errors import BadRequest, Unauthorized

KEY = "ply_ABCDEFGHIJabcdefghij01234567890iDXGk"


@pytest.mark.parametrize(("authorization", "x_api_key"), [
    (KEY, None), (f"Bearer {KEY}", None), (f"bearer {KEY}", None), (f"BEARER\t {KEY} ", None), (None, KEY),
    (None, f" {KEY} "), (KEY, KEY), (f"Bearer {KEY}", KEY)])
def test_the_ways_to_send_a_key(authorization: str | None, x_api_key: str | None) -> None:
    assert credential(authorization, x_api_key) == KEY.encode()


def test_no_header_is_no_credential() -> None:
    assert credential(None, None) is None


def test_only_the_scheme_is_taken_off() -> None:
    assert credential("my Bearer key", None) == b"my Bearer key"
    assert credential("bearerkey", None) == b"bearerkey"
    assert credential(f"Basic {KEY}", None) == f"Basic {KEY}".encode()
    assert credential(None, f"Bearer {KEY}") == f"Bearer {KEY}".encode()


@pytest.mark.parametrize(("value", "taken"), [
    ("eyJ." + "x" * 3000 + ".s", True), ("eyJ." + "x" * 8186 + ".s", True), ("eyJ." + "x" * 8187 + ".s", False),
    ("eyJ." + "x" * 3000, False), ("eyJ." + "x" * 3000 + ".s.t", False), ("eyJ." + "x" * 3000 + "!.s", False)])
def test_a_token_may_be_longer_than_a_key(value: str, taken: bool) -> None:
    if taken:
        assert credential(f"Bearer {value}", None) == value.encode()
        return
    with pytest.raises(Unauthorized):
        credential(f"Bearer {value}", None)


@pytest.mark.parametrize("pair", [(KEY, "other"), (f"Bearer {KEY}", KEY[:-1]), ("a", "b")])
def test_two_different_keys_conflict(pair: tuple[str, str]) -> None:
    with pytest.raises(BadRequest) as caught:
        credential(*pair)
    assert caught.value.code == "conflicting_credentials" and KEY not in caught.value.message


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "bearer\t"])
def test_a_scheme_without_a_key_is_unauthorized(value: str) -> None:
    for x_api_key in (None, KEY):
        with pytest.raises(Unauthorized):
            credential(value, x_api_key)


@pytest.mark.parametrize("value", ["", " ", "x" * 513, "x" * 8192, "k\xe9y", "\xf0\x9f\x94\x91", "\x80",
                                   "a\r\nX: y", "a\0b", "a\x7fb", "\u043a\u043b\u044e\u0447", "\udc80"])
def test_what_cannot_be_a_key_is_unauthorized(value: str) -> None:
    for pair in ((value, None), (None, value), (value, KEY), (KEY, value)):
        with pytest.raises(Unauthorized) as caught:
            credential(*pair)
        assert caught.value.message == "Unauthorized"


def check_any(authorization: str | None, x_api_key: str | None) -> None:
    """Bytes, None or a clean refusal, whatever comes."""
    try:
        found = credential(authorization, x_api_key)
    except (Unauthorized, BadRequest):
        return
    assert found is None or (0 < len(found) <= 512 and found.isascii())


@settings(max_examples=500, deadline=None)
@given(st.none() | st.text(max_size=40), st.none() | st.text(max_size=40))
def test_any_text_in_the_headers(authorization: str | None, x_api_key: str | None) -> None:
    check_any(authorization, x_api_key)


def test_ten_thousand_random_headers() -> None:
    random = Random(4)
    for number in range(10_000):
        raw = [random.randbytes(random.randrange(30)).decode("latin-1") for _ in range(2)]
        check_any(raw[0] if number % 3 else f"Bearer {raw[0]}", raw[1] if number % 2 else None)


@pytest.mark.parametrize("query", ["api_key=x", "API_KEY=x", "access_token", "anything=a" + KEY, KEY, "%61pi_key=x",
                                   "q=%70" + KEY[1:], "a;api_key=x&key=", "x=1&token=%ff", "jwt=e.e.e"])
def test_a_key_in_the_query_is_refused_and_not_echoed(query: str) -> None:
    with pytest.raises(BadRequest) as caught:
        refuse_in_query(f"fine=1&{query}".encode())
    assert caught.value.code == "key_in_query" and "Authorization" in caught.value.message
    assert KEY not in str(caught.value.envelope())


def test_other_queries_pass() -> None:
    for query in (b"", b"&&==", b"page=2&q=ply_", b"%", b"%ff=%00", b"keys=1"):
        refuse_in_query(query)
    with pytest.raises(BadRequest) as caught:
        refuse_in_query(b"q=\xff")
    assert caught.value.code == "bad_query"
