"""A response as it comes: which events there are, in which order, and that the whole is their fold."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from services.chat.background import Cancelled
from services.chat.events import Beat, Called, Delta, Reasoned, Waiting
from services.chat.messages import Call
from services.errors import RunnerCrashed, TooManyRequests
from services.web.responses.events import Shaper
from services.wire import Logprob
from tests.services.web.conftest import final

SHAPE = {"id": "resp_1", "object": "response", "created_at": 1, "completed_at": None, "error": None, "usage": None,
         "incomplete_details": None, "model": "one", "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
EVENT = TypeAdapter(ResponseStreamEvent)


def ended(reason="stop", **more):
    last = final("x")
    return replace(last, done=msgspec.structs.replace(last.done, finish_reason=reason), **more)


def shaped(*events, stream=True, queued=False):
    def come():
        for event in events:
            if isinstance(event, Exception):
                raise event
            yield 0, event
    return list(Shaper(SHAPE, "t", lambda: 5.0).payloads(come(), stream, queued))


def kinds(payloads):
    return [payload["type"].removeprefix("response.") for payload in payloads if "type" in payload]


def folded(payloads):
    """What the stream's deltas amount to, item by item."""
    items = {}
    for payload in payloads:
        kind = payload.get("type", "")
        if kind.endswith("output_item.added"):
            items[payload["output_index"]] = payload["item"], []
        elif kind.endswith(".delta"):
            items[payload["output_index"]][1].append(payload["delta"])
    return [(item["type"], "".join(texts)) for _, (item, texts) in sorted(items.items())]


THOUGHT, SAID = (["output_item.added", "content_part.added", f"{stem}.delta", f"{stem}.done", "content_part.done",
                  "output_item.done"] for stem in ("reasoning_text", "output_text"))
CALLED = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
BEGUN, ENDED = ["created", "in_progress"], ["completed"]


@pytest.mark.parametrize(("events", "expected", "output"), [
    ([Delta("a")], SAID, [("message", "a")]),
    ([Reasoned("r"), Delta("a")], [*THOUGHT, *SAID], [("reasoning", "r"), ("message", "a")]),
    ([Called(0, id="c", name="f"), Called(0, "{}")], CALLED, [("function_call", "{}")]),
    ([Delta("a"), Called(0, "{}", "c", "f"), Called(1, "[]", "d", "g")], [*SAID, *CALLED, *CALLED],
     [("message", "a"), ("function_call", "{}"), ("function_call", "[]")]),
    ([Called(0, "{}", "c", "f"), Delta("a")], [*CALLED, *SAID], [("function_call", "{}"), ("message", "a")]),
    ([], [kind for kind in SAID if kind != "output_text.delta"], [("message", "")])])
def test_the_order_of_events(events, expected, output):
    payloads = shaped(*events, ended())
    assert kinds(payloads) == [*BEGUN, *expected, *ENDED]
    assert folded(payloads) == output
    assert [payload["sequence_number"] for payload in payloads[:-1]] == list(range(len(payloads) - 1))
    done = payloads[-1]
    assert done.pop("done") is True and done == payloads[-2]["response"]
    assert [item["type"] for item in done["output"]] == [kind for kind, _ in output]
    assert [payload["item"] for payload in payloads[:-1] if payload["type"].endswith("item.done")] == done["output"]
    assert (done["status"], done["completed_at"], done["usage"]["input_tokens"]) == ("completed", 5, 7)
    Response.model_validate(done)
    for payload in payloads[:-1]:
        EVENT.validate_python(payload)


def test_what_was_told_does_not_change_any_more():
    first, *_ = shaped(Delta("a"), ended())
    assert first["response"]["output"] == [] and first["response"]["status"] == "in_progress"
    assert "output" not in SHAPE and SHAPE["usage"] is None


def test_an_answer_that_was_cut():
    payloads = shaped(Delta("a"), ended("length"))
    assert kinds(payloads)[-1] == "incomplete" and payloads[-1]["output"][0]["status"] == "incomplete"
    assert payloads[-1]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert payloads[-1]["status"] == "incomplete" and payloads[-1]["completed_at"] is None
    *_, cancelled = shaped(Delta("a"), ended("cancelled"))
    assert cancelled["status"] == "cancelled" and cancelled["incomplete_details"] is None


def test_signs_of_life_come_before_the_first_event():
    payloads = shaped(Beat(), Waiting(3, 2.5), Delta("a"), Beat(), ended())
    assert payloads[0] == payloads[1] == {"beat": True} and payloads[2]["type"] == "response.created"


def test_log_probabilities_are_told_with_their_text():
    one, two = (Logprob(token=n, text=b"a", logprob=-0.5, top=[(n, b"a", -0.5)]) for n in (1, 2))
    payloads = shaped(Delta("a", (one,)), Delta("", (two,)), ended())
    told = [payload["logprobs"] for payload in payloads if payload.get("type") == "response.output_text.delta"]
    shape = {"token": "a", "bytes": [97], "logprob": -0.5}
    assert told == [[{**shape, "top_logprobs": [shape]}]] * 2
    assert payloads[-1]["output"][0]["content"][0]["logprobs"] == [*told[0], *told[1]]


def test_tokens_without_a_text_begin_no_item():
    first, mark, second = ((Logprob(token=number, text=b"x", logprob=-1.0),) for number in range(3))
    told = shaped(Reasoned("so"), Delta("", mark), Reasoned(" it is"), Delta("", mark), Called(0, "", "call_1", "f"),
                  Delta("", mark), Called(0, '{"a"'), Delta("", mark), Called(0, ":1}"), Delta("", mark), ended())
    assert [item["type"] for item in told[-1]["output"]] == ["reasoning", "function_call"]
    assert (told[-1]["output"][1]["call_id"], told[-1]["output"][1]["arguments"]) == ("call_1", '{"a":1}')
    told = shaped(Delta("", first), Delta("é", second), Delta("", mark), ended())      # a character of two tokens
    assert len(told[-1]["output"]) == 1 and len(told[-1]["output"][0]["content"][0]["logprobs"]) == 3


def test_a_call_that_the_end_cut():
    payloads = shaped(Called(0, '{"a', "c", "f"), ended("length"))
    call, = payloads[-1]["output"]
    assert (call["status"], call["arguments"]) == ("incomplete", '{"a')
    *_, whole = shaped(Called(0, "{}", "c", "f"), ended(calls=(Call("c", "f", "{}"),)))
    assert (whole["status"], whole["output"][0]["call_id"]) == ("completed", "c")


def test_an_error_before_the_first_event_is_raised():
    with pytest.raises(RunnerCrashed):
        shaped(Beat(), RunnerCrashed("gone"))


def test_an_error_in_a_stream_ends_it_as_failed():
    payloads = shaped(Delta("a"), RunnerCrashed("gone"))
    assert kinds(payloads)[-2:] == ["output_item.done", "failed"]
    assert payloads[-1]["error"] == {"code": "server_error", "message": "gone"}
    assert payloads[-1]["status"] == "failed" and payloads[-1]["output"][0]["status"] == "incomplete"
    with pytest.raises(RunnerCrashed):
        shaped(Delta("a"), RunnerCrashed("gone"), stream=False)


def test_a_queued_one_is_told_at_once():
    payloads = shaped(TooManyRequests("later"), queued=True)
    assert kinds(payloads) == ["created", "queued", "in_progress", "failed"]
    assert [payload["response"]["status"] for payload in payloads[:3]] == ["queued", "queued", "in_progress"]
    assert payloads[-1]["error"]["code"] == "rate_limit_exceeded"
    *_, cancelled = shaped(Delta("a"), Cancelled("stop"), queued=True)
    assert cancelled["status"] == "cancelled" and cancelled["error"] is None


def test_warnings_are_told():
    assert shaped(ended(warnings=("mind",)))[-1]["warnings"] == ["mind"]
