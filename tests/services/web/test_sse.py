"""The framing of streams: whatever a model says, a client reads one JSON event a line (row N8)."""

from __future__ import annotations

import json
import re

import pytest
from flask import Flask, g
from hypothesis import given
from hypothesis import strategies as st

from services.errors import Unavailable
from services.web import sse
from services.web.frame import Trace, json_response
from services.web.watch import ClientGone

NASTY = st.text(alphabet=st.sampled_from([*"data:event:id:retry: {}\"\\\n\r\t\0", "\x85", "\u2028", "\u2029", "\x0b",
                                          "\x0c", "\x1c", "😀", "\u0301", "\ufeff"]), max_size=60)


@given(NASTY | st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_one_text_is_one_event(text):
    raw = sse.event({"delta": text})
    assert raw.startswith(b"data: ") and raw.endswith(b"\n\n")
    assert len(raw[:-2].decode().splitlines()) == 1, "also for clients that know more line ends than the standard"
    assert json.loads(raw[6:-2]) == {"delta": text}


@given(NASTY, st.sampled_from([sse.PLAIN, sse.OPENAI, sse.NAMED]))
def test_a_text_names_no_event_in_any_style(text, style):
    payload = {"type": "delta", "text": text}
    *name, data = style.event(payload).decode().removesuffix("\n\n").splitlines()
    assert name == (["event: delta"] if style is sse.NAMED else [])
    assert data.startswith("data: ") and json.loads(data[6:]) == payload


@given(st.lists(NASTY, max_size=6))
def test_a_client_by_the_standard_reads_back_what_was_said(texts):
    stream = b"".join(sse.event({"delta": text}) + sse.HEARTBEAT for text in texts).decode()
    events = [block for block in re.split("\r\n\r\n|\n\n|\r\r", stream) if block.startswith("data: ")]
    assert [json.loads(event[6:])["delta"] for event in events] == texts


def test_half_a_character_from_below_leaves_as_an_escape():
    assert sse.event({"delta": "\ud800"}) == b'data: {"delta":"\\ud800"}\n\n'


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_no_number_leaves_that_json_does_not_have(number):
    """Row U4: none is told, whoever computed it."""
    for write in (lambda: sse.event({"logprob": number}), lambda: json_response({"logprob": [number]})):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write()


class Payloads:
    """A generator of scripted payloads that tells whether it was closed."""

    def __init__(self, *script):
        self.closed = False
        self.generator = self._run(script)

    def _run(self, script):
        try:
            for item in script:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


@pytest.fixture
def in_request():
    app = Flask("test")
    with app.test_request_context():
        g.trace = Trace("r1")
        yield


def text_of(response):
    return b"".join(response.response).decode()


def test_an_error_before_the_first_event_is_still_a_status(in_request):
    payloads = Payloads(Unavailable("busy"))
    with pytest.raises(Unavailable):
        sse.response(payloads.generator)
    assert payloads.closed


def test_beats_before_the_first_event_are_waited_out(in_request, monkeypatch):
    with pytest.raises(Unavailable):
        sse.response(Payloads(sse.BEAT, Unavailable("busy")).generator)
    monkeypatch.setattr(sse, "PATIENCE", 0)
    response = sse.response(Payloads(sse.BEAT, Unavailable("busy", code="x")).generator)
    first, second = text_of(response).split("\n\n")[:2]
    assert first == ": hb"
    assert json.loads(second[6:])["error"]["code"] == "x"


def test_an_error_after_the_start_is_an_event(in_request):
    response = sse.response(Payloads({"delta": "a"}, RuntimeError("secret")).generator)
    text = text_of(response)
    assert '"code":"internal_error"' in text and "secret" not in text


def test_a_client_that_left_ends_the_stream_in_silence(in_request):
    payloads = Payloads({"delta": "a"}, ClientGone())
    assert text_of(sse.response(payloads.generator)) == 'data: {"delta":"a"}\n\n'
    assert payloads.closed and g.trace.status == 499


def test_a_response_that_is_never_read_closes_its_payloads(in_request):
    payloads = Payloads({"delta": "a"}, {"delta": "b"})
    sse.response(payloads.generator).close()
    assert payloads.closed


def test_headers(in_request):
    response = sse.response(Payloads({"done": True}).generator)
    assert response.mimetype == "text/event-stream" and response.headers["X-Accel-Buffering"] == "no"
