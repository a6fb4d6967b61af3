"""Prefixes of a frame."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import BadRequest
from services.web.sockets.frames import PREFIXES, Asked, key_of, parse


@pytest.mark.parametrize(("text", "asked"), [
    ("hello", Asked("hello")),
    ("  hello |x| ", Asked("hello |x|")),
    ("|CONTEXT|a\nb|/CONTEXT| why?", Asked("why?", context="a\nb")),
    ("|CONTENT|a|/CONTENT|why?", Asked("why?", content="a")),
    ("|SESSION|s1|/SESSION|why?", Asked("why?", session="s1")),
    ("|SESSION|urn:uuid:12-ab|/SESSION|why?", Asked("why?", session="12-ab")),
    ("|RAG|wikipedia.org|/RAG|who?", Asked("who?", rag=("wikipedia.org",))),
    ("|RAG|canada.ca|gc.ca|/RAG|who?", Asked("who?", rag=("canada.ca", "gc.ca"))),
    ("|KEY|ply_x|/KEY|", Asked("", key="ply_x")),
    ("|KEY|k|/KEY||SESSION|s|/SESSION| |CONTEXT|c|/CONTEXT|why?", Asked("why?", "k", "s", "c")),
    ("|CONTEXT|a|/CONTEXT|b|/CONTEXT|", Asked("b|/CONTEXT|", context="a")),
    ("|CONTEXT||/CONTEXT|why?", Asked("why?", context="")),
    ("|OTHER|x|/OTHER|y", Asked("|OTHER|x|/OTHER|y")),
    ("see |CONTEXT|a|/CONTEXT|", Asked("see |CONTEXT|a|/CONTEXT|"))])
def test_frame_is_read(text, asked):
    assert parse(text) == asked


@pytest.mark.parametrize("text", ["|CONTEXT|a", "|KEY|a|/CONTEXT|b", "|RAG|a|/RAG||RAG|b|/RAG|c"])
def test_frame_that_cannot_be_read_is_refused(text):
    with pytest.raises(BadRequest):
        parse(text)


@given(st.sampled_from(PREFIXES[2:4]), st.text().filter(lambda text: "|" not in text), st.text(st.characters(
    exclude_characters="|")))
def test_what_is_given_is_kept_as_it_is(name, inner, prompt):
    asked = parse(f"|{name}|{inner}|/{name}|{prompt}")
    assert (getattr(asked, name.lower()), asked.prompt) == (inner, prompt.strip())


@pytest.mark.parametrize(("text", "key"), [
    ('{"key": "ply_x"}', "ply_x"), ('{"key": 1}', None), ('{"key": "a", "b": 1}', None), ("{", None), ("[]", None),
    ("hello", None), (json.dumps(["key"]), None), ("{" * 100_000, None)])
def test_key_in_json(text, key):
    assert key_of(text) == key
