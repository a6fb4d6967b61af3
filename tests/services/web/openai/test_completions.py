"""`POST /v1/completions`: what a body asks for, OpenAI's older shapes, whole and as chunks."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from services.chat.events import Delta
from services.web.openai import shapes
from services.wire import Logprob
from tests.services.web.conftest import final
from tests.services.web.openai.conftest import Family

BOS = Logprob(token=0, text=b"<s>", logprob=0.0)
HI = Logprob(token=1, text=b"hi", logprob=-1.0, top=[(2, b"ho", -0.5)])
YES = Logprob(token=3, text=b"yes", logprob=-2.0)


@pytest.fixture
def family():
    return Family("/v1/completions", shapes.Completion, shapes.CompletionChunk)


def test_an_answer(whole):
    answer = whole(prompt="hi")
    assert answer.pop("id").startswith("cmpl-") and answer.pop("created") and answer.pop("system_fingerprint")
    assert answer.pop("timings")
    assert answer == {"object": "text_completion", "model": "one",
                      "choices": [{"text": "yes", "index": 0, "logprobs": None, "finish_reason": "stop"}],
                      "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9,
                                "prompt_tokens_details": {"cached_tokens": 3}}}
    assert whole("/completions", prompt="hi")["choices"] == answer["choices"]


@pytest.mark.parametrize("given, raw", [("a b", ["a b"]), ("", [""]), (["a", "b"], ["a", "b"]), ([1, 2], [(1, 2)]),
                                        ([[1, 2], [3]], [(1, 2), (3,)])])
def test_a_prompt_goes_on_as_it_is(scripted, whole, given, raw):
    whole(prompt=given, n=2, seed=5, suffix="end", logprobs=0, temperature=0.5, user="u", stop="x")
    asked = scripted.parts.chat.asked
    assert [ask.raw for ask in asked] == [one for one in raw for _ in range(2)]
    assert [ask.seed for ask in asked] == [5, 6] * len(raw)
    assert {(ask.suffix, ask.max_tokens, ask.temperature, ask.logprobs, ask.stop, ask.echo) for ask in asked} == {
        ("end", 16, 0.5, 0, ("x",), False)}


def test_a_stream(chunks):
    first, last, usage = chunks(prompt="hi", stream_options={"include_usage": True})
    assert first["choices"] == [{"text": "yes", "index": 0, "logprobs": None, "finish_reason": None}]
    assert last["choices"] == [{"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert first["usage"] is last["usage"] is None and usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 9


def test_several_prompts_with_several_answers(whole, chunks):
    answer = whole(prompt=["a", "b"], n=2, best_of=2, echo=True)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "ayes"), (1, "ayes"), (2, "byes"), (3, "byes")]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (14, 8)
    found = chunks(prompt=["a", "b"], n=2, echo=True)
    texts = {index: "".join(chunk["choices"][0]["text"] for chunk in found if chunk["choices"][0]["index"] == index)
             for index in range(4)}
    assert texts == {0: "ayes", 1: "ayes", 2: "byes", 3: "byes"}


def test_tokens_are_echoed_as_text(whole):
    assert whole(prompt=[104, 105], echo=True)["choices"][0]["text"] == "hiyes"


def test_who_waits_for_the_text_of_an_echo_takes_a_place(scripted):
    places = scripted.app.extensions["parley"].places
    while places.acquire(blocking=False):
        pass
    response = scripted.call("POST", "/v1/completions", json={"prompt": [104], "echo": True})
    assert (response.status_code, response.json["error"]["code"], scripted.parts.engine.loaded[1:]) == (503, "busy", [])


@pytest.mark.parametrize("begins", [(), (BOS,)])
def test_logprobs_with_the_prompts(scripted, whole, chunks, begins):
    """What an echo begins with follows nothing, unless the model has a mark of its own before it."""
    events = [Delta("", (*begins, HI)), Delta("yes", (YES,)), replace(final("yes"), logprobs=(*begins, HI, YES))]
    scripted.parts.chat.events = events
    wanted = {"tokens": ["hi", "yes"], "text_offset": [0, 2], "token_logprobs": [-1.0 if begins else None, -2.0],
              "top_logprobs": [{"ho": -0.5, "hi": -1.0} if begins else None, {"yes": -2.0}]}
    assert whole(prompt="hi", echo=True, logprobs=1)["choices"][0]["logprobs"] == wanted
    assert scripted.parts.chat.asked[-1].echo
    found = [chunk["choices"][0]["logprobs"] for chunk in chunks(prompt="hi", echo=True, logprobs=1)]
    assert {name: found[0][name] + found[1][name] for name in wanted} == wanted and found[2] is None


def test_a_text_alone_is_scored(scripted, whole, chunks):
    done = replace(final("yes"), logprobs=(BOS, HI, YES))
    scripted.parts.chat.events = [Delta("", (BOS, HI)), Delta("yes", (YES,)),
                                  replace(done, done=msgspec.structs.replace(done.done, prompt_tokens=2))]
    wanted = {"tokens": ["hi"], "text_offset": [0], "token_logprobs": [-1.0],
              "top_logprobs": [{"ho": -0.5, "hi": -1.0}]}
    answer = whole(prompt="hi", echo=True, logprobs=1, max_tokens=0)
    assert scripted.parts.chat.asked[-1].max_tokens == 1
    assert answer["choices"] == [{"text": "hi", "index": 0, "logprobs": wanted, "finish_reason": "length"}]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (2, 0)
    first, last = chunks(prompt="hi", echo=True, logprobs=1, max_tokens=0)
    assert (first["choices"][0]["text"], first["choices"][0]["logprobs"]) == ("hi", wanted)
    assert last["choices"] == [{"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}]
    assert whole(prompt="hi", echo=True, max_tokens=0)["choices"][0]["text"] == "hi"


def test_logprobs_without_an_echo(scripted, whole):
    scripted.parts.chat.events = [Delta("hiyes", (HI, YES)), replace(final("hiyes"), logprobs=(HI, YES))]
    assert whole(prompt="x", logprobs=0)["choices"][0]["logprobs"] == {
        "tokens": ["hi", "yes"], "text_offset": [0, 2], "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [{"ho": -0.5, "hi": -1.0}, {"yes": -2.0}]}


def test_an_empty_answer_still_begins_with_its_prompt(scripted, whole, chunks):
    scripted.parts.chat.events = [final("")]
    assert whole(prompt="hi", echo=True)["choices"][0]["text"] == "hi"
    assert [chunk["choices"][0]["text"] for chunk in chunks(prompt="hi", echo=True)] == ["hi", ""]


@pytest.mark.parametrize("body, param, told", [
    ({}, "prompt", "required"), ({"prompt": 3}, "prompt", "list"), ({"prompt": []}, "prompt", "at least 1"),
    ({"prompt": [1, "a"]}, "prompt.1", "integer"), ({"prompt": [-1]}, "prompt.0", "0"),
    ({"prompt": [[1], []]}, "prompt.1", "at least 1"), ({"prompt": ["a"] * 20, "n": 16}, "prompt", "64 answers"),
    ({"prompt": "a", "best_of": 3}, "best_of", "as many as n"), ({"prompt": "a", "logprobs": 6}, "logprobs", "5"),
    ({"prompt": "a", "echo": True, "suffix": "b"}, "echo", "suffix"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens", "greater"),
    ({"prompt": "a", "metadata": {"session_id": 3}}, "session_id", "/v1/chat/completions"),
    ({"prompt": "a", "messages": []}, "messages", "Unrecognized request argument supplied: messages"),
])
def test_what_is_wrong_is_refused_by_name(scripted, body, param, told):
    response = scripted.call("POST", "/v1/completions", json=body)
    assert (response.status_code, response.json["error"]["param"]) == (400, param)
    assert told in response.json["message"]


def test_the_session_of_a_header_is_refused_too(scripted):
    response = scripted.call("POST", "/v1/completions", json={"prompt": "a"}, headers={"X-Session-Id": "7"})
    assert (response.status_code, response.json["error"]["param"]) == (400, "session_id")
