"""Bodies as bytes: what is refused before and while parsing (rows B1 to B3, B5, U1, U4, E3, E5)."""

from __future__ import annotations

import io
import json
import time

import pytest
from flask import Request
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder

from services.errors import BadRequest, ParleyError, TooLarge, UnsupportedMedia
from services.web import json_body
from services.web.json_body import MAX_DEPTH, lone_surrogate, parse, read_object

REFUSED = {
    "empty": b"", "blank": b"  ", "null": b"null", "array": b"[]", "string": b'"x"', "number": b"1", "true": b"true",
    "truncated": b'{"prompt": "x"', "junk after": b'{"a": 1} x', "two documents": b'{"a": 1}{"a": 1}',
    "single quotes": b"{'a': 1}", "trailing comma": b'{"a": 1,}', "comment": b'{"a": 1 /* x */}',
    "byte order mark": b'\xef\xbb\xbf{"a": 1}', "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-16 without mark": '{"a": 1}'.encode("utf-16-le"), "UTF-32": '{"a": 1}'.encode("utf-32"),
    "latin-1": b'{"a": "\xe9"}', "overlong UTF-8": b'{"a": "\xc0\xaf"}', "surrogate bytes": b'{"a": "\xed\xa0\x80"}',
    "raw newline": b'{"a": "x\ny"}', "raw NUL": b'{"a": "x\x00y"}',
    "NaN": b'{"a": NaN}', "Infinity": b'{"a": Infinity}', "-Infinity": b'{"a": -Infinity}', "1e400": b'{"a": 1e400}',
    "-1e400": b'{"a": -1e400}', "1e-400": b'{"a": 1e-400}', "-0": b'{"a": -0}', "-0.0": b'{"a": -0.0}',
    "5000 digits": b'{"a": ' + b"9" * 5000 + b"}", "leading zero": b'{"a": 01}', "hex": b'{"a": 0x1}',
    "full-width digit": '{"a": １}'.encode(), "duplicate": b'{"a": 1, "a": 2}',
    "duplicate below": b'{"b": {"a": 1, "a": 1}}',
    "duplicate by escape": b'{"a": 1, "\\u0061": 2}',
    "lone high": b'{"a": "\\ud800"}', "lone low": b'{"a": "x\\udfff"}', "lone in name": b'{"\\ud800": 1}',
    "lone in list": b'{"a": ["ok", "\\udc00"]}', "reversed pair": b'{"a": "\\udc00\\ud800"}',
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_refused_with_400(raw):
    with pytest.raises(BadRequest) as caught:
        parse(raw)
    caught.value.message.encode()


@pytest.mark.parametrize("raw, value", [
    (b"{}", {}), (b' {"a": 1} \r\n\t', {"a": 1}), (b'{"a": 1.5e3}', {"a": 1500.0}), (b'{"a": 0.0}', {"a": 0.0}),
    (b'{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
    ('{"a": "e\u0301 \u202e\u200d"}'.encode(), {"a": "e\u0301 \u202e\u200d"}),
    (b'{"a": "\\u0000"}', {"a": "\0"}), (b'{"a": "[[[[\\"{{{"}', {"a": '[[[["{{{'}),
    (b'{"a": 9223372036854775808}', {"a": 2**63}),
])
def test_taken(raw, value):
    assert parse(raw) == value


def test_bad_unicode_has_its_code_and_names_the_field():
    with pytest.raises(BadRequest) as caught:
        parse(b'{"stop": ["x", "\\ud800"]}')
    assert (caught.value.code, caught.value.param) == ("bad_unicode", "stop.1")


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("depth, fits", [(MAX_DEPTH, True), (MAX_DEPTH + 1, False), (100_000, False)])
def test_depth(opening, closing, depth, fits):
    raw = ('{"a":' + opening * (depth - 1) + "1" + closing * (depth - 1) + "}").encode()
    if fits:
        assert parse(raw)
        return
    with pytest.raises(BadRequest) as caught:
        parse(raw)
    assert caught.value.code == "too_deep"


BULKY = {
    "1M keys": lambda: b'{"a":{' + b",".join(b'"%d":1' % n for n in range(1_000_000)) + b"}}",
    "4M numbers": lambda: b'{"a":[' + b"1," * 4_000_000 + b"1]}",
    "4M empty strings": lambda: b'{"a":[' + b'""' * 4_000_000 + b"]}",
    "4M empty lists": lambda: b'{"a":[' + b"[]" * 4_000_000 + b"]}",
    "8M openings": lambda: b"[" * 8_000_000,
    "8M backslashes": lambda: b'{"a":"' + b"\\" * 8_000_000 + b'"}',
    "8M backslash quotes": lambda: b'{"a":"' + b'\\"' * 4_000_000 + b'[[[["}',
}       # made when it is their turn: what is collected stays in memory to the end


@pytest.mark.parametrize("make", BULKY.values(), ids=BULKY)
def test_bulk_is_judged_before_it_is_parsed(make):
    raw = make()
    started = time.process_time()
    try:
        parse(raw)
    except BadRequest as error:
        assert error.code in ("too_complex", "too_deep", "invalid_json")
    assert time.process_time() - started < 2, "this must be a matter of milliseconds, also on a busy machine"


def test_a_long_name_is_only_a_name():
    assert parse(b'{"' + b"x" * 1_000_000 + b'": 1}')


LEAVES = st.none() | st.booleans() | st.integers(-10**9, 10**9) | st.text()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
                    max_leaves=20)


@given(st.dictionaries(st.text(), JSON, max_size=5), st.booleans())
def test_every_clean_object_survives(value, escaped):
    assert parse(json.dumps(value, ensure_ascii=escaped).encode()) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_a_bad_request(raw):
    try:
        assert isinstance(parse(raw), dict)
    except BadRequest as error:
        assert error.status == 400


@given(st.text(alphabet="[]{}\"\\,:1a\n", max_size=200))
def test_depth_is_never_underestimated(text):
    """What passes the count on bytes parses without deeper recursion than allowed."""
    def deepest(value):
        below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + max(map(deepest, below), default=0) if isinstance(value, (dict, list)) else 0
    try:
        assert deepest(parse(text.encode())) <= MAX_DEPTH
    except BadRequest:
        pass


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_lone_surrogate_is_what_utf8_cannot_carry(text):
    try:
        text.encode()
        assert lone_surrogate({"a": text}) is None
    except UnicodeEncodeError:
        assert lone_surrogate({"a": text}) == "a"


# ---------------------------------------------------------------- the request around it

def request_with(body: bytes = b"{}", content_length: str | None = None, **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    environ = EnvironBuilder(method="POST", path="/", headers=named).get_environ()
    environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": content_length or str(len(body))}
    return Request(environ)


JSON_TYPE = {"Content_Type": "application/json"}


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8",
                                  "Application/JSON; charset=\"UTF-8\""])
def test_content_types_taken(kind):
    assert read_object(request_with(b'{"a": 1}', Content_Type=kind), 100)[1] == {"a": 1}


@pytest.mark.parametrize("headers", [
    {}, {"Content_Type": "text/plain"}, {"Content_Type": "application/x-www-form-urlencoded"},
    {"Content_Type": "multipart/form-data; boundary=x"}, {"Content_Type": "application/json; charset=utf-16"},
    {"Content_Type": "application/json5"}, {"Content_Type": "text/json"}, {**JSON_TYPE, "Content_Encoding": "gzip"},
    {**JSON_TYPE, "Content_Encoding": "deflate, gzip"},
])
def test_other_media_are_415(headers):
    with pytest.raises(UnsupportedMedia):
        read_object(request_with(**headers), 100)


def test_no_body_where_none_is_needed():
    assert read_object(request_with(b""), 100, optional=True) == (b"", None)
    with pytest.raises(UnsupportedMedia):
        read_object(request_with(b"{}"), 100, optional=True)


def test_announced_length_above_the_cap_is_refused_unread():
    request = request_with(b"{}", content_length="101", **JSON_TYPE)
    with pytest.raises(TooLarge):
        read_object(request, 100)
    assert request.environ["wsgi.input"].tell() == 0


def chunked(body: bytes) -> Request:
    request = request_with(body, Transfer_Encoding="chunked", **JSON_TYPE)
    request.environ["wsgi.input_terminated"] = True
    return request


def test_chunked_body_is_read_whole_or_refused_never_cut():
    assert read_object(chunked(b'{"a": 1}'), 8)[1] == {"a": 1}
    with pytest.raises(TooLarge):
        read_object(chunked(b'{"a": 1} '), 8)


def test_chunked_body_that_the_server_does_not_delimit_is_411():
    request = request_with(b"{}", Transfer_Encoding="chunked", **JSON_TYPE)
    request.environ["wsgi.input_terminated"] = False
    with pytest.raises(json_body.LengthRequired):
        read_object(request, 100)


@pytest.mark.parametrize("length", ["-1", "x", "1_0", "+5", "9" * 30])
def test_bad_lengths(length):
    with pytest.raises(ParleyError) as caught:
        read_object(request_with(b"{}", content_length=length, **JSON_TYPE), 100)
    assert caught.value.status in (400, 413)


def test_body_that_ends_early_is_refused():
    with pytest.raises(BadRequest) as caught:
        read_object(request_with(b'{"a": 1}', content_length="20", **JSON_TYPE), 100)
    assert caught.value.code == "truncated_body"


@pytest.mark.parametrize("failure, status", [(BlockingIOError(), 408), (TimeoutError(), 408),
                                             (ConnectionResetError(), 400)])
def test_a_connection_that_fails_while_the_body_comes(failure, status):
    class Broken(io.RawIOBase):
        def read(self, size=-1):
            raise failure
    request = request_with(b'{"a": 1}', **JSON_TYPE)
    request.environ["wsgi.input"] = Broken()
    with pytest.raises(ParleyError) as caught:
        read_object(request, 100)
    assert caught.value.status == status
