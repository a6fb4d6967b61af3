"""Pairs of texts from addresses and forms: read strictly, told of like the fields of a JSON body."""

from __future__ import annotations

import io

import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from services.errors import BadRequest, TooLarge
from services.web.query import FORM, read_form, read_query


def request(query="", body=b""):
    return Request(EnvironBuilder(query_string=query, method="POST", input_stream=io.BytesIO(body),
                                  content_length=len(body), content_type=FORM).get_environ())


def test_texts_are_decoded():
    assert read_query(request("a=x+y%C3%A9&b=")) == {"a": "x yé", "b": ""}
    assert read_form(request(body=b"a=x+y%C3%A9&b="), 99) == (b"a=x+y%C3%A9&b=", {"a": "x yé", "b": ""})


def test_no_form_is_none_where_it_may_be_left_out():
    assert read_form(request(), 99, optional=True) == (b"", None)
    assert read_form(request(), 99) == (b"", {})


@pytest.mark.parametrize("text", ["a=1&a=2", "a=%ff", "a=%ED%A0%80", "&".join(f"a{n}=1" for n in range(101))])
def test_what_could_be_read_in_two_ways_is_refused(text):
    with pytest.raises(BadRequest) as of_query:
        read_query(request(text))
    with pytest.raises(BadRequest) as of_form:
        read_form(request(body=text.encode()), 9999)
    assert (of_query.value.code, of_form.value.code) == ("bad_query", "bad_form")


def test_long_form_is_refused():
    with pytest.raises(TooLarge):
        read_form(request(body=b"a=" + b"x" * 99), 50)
