"""Answers of `POST /v1/chat/completions`: OpenAI's shapes, whole and as chunks, made of the same events."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from msgspec.structs import replace as replace_struct

from services.chat.events import Beat, Called, Delta, Reasoned, Waiting
from services.chat.messages import Call
from services.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    QuotaSpent,
    RunnerCrashed,
    SessionBusy,
    StorageFull,
    TooManyRequests,
)
from services.web.openai import shapes
from services.wire import Done, Logprob, Piece
from tests.services.web.conftest import READY, FakeLease, final
from tests.services.web.openai.conftest import Family

USER = [{"role": "user", "content": "hi"}]
LIKELY = Logprob(token=1, text="é".encode()[:1], logprob=-0.5, top=[(1, b"\xc3", -0.5), (2, b"no", float("-inf"))])
CALLS = (Call("call_a", "weather", '{"at":"x"}'), Call("call_b", "now", "{}"))


@pytest.fixture
def family():
    return Family("/v1/chat/completions", shapes.ChatCompletion, shapes.ChatChunk, {"messages": USER})


def test_an_answer(whole):
    answer = whole()
    assert answer.pop("id").startswith("chatcmpl-") and answer.pop("created") > 1.7e9
    assert answer.pop("system_fingerprint").startswith("fp_") and answer.pop("timings")["queue_ms"] == 0
    assert answer == {
        "object": "chat.completion", "model": "one",
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None,
                     "message": {"role": "assistant", "content": "yes", "refusal": None}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9,
                  "prompt_tokens_details": {"cached_tokens": 3}}}
    assert whole("/chat/completions")["choices"] == answer["choices"]


def test_the_fingerprint_is_the_profiles(whole):
    assert whole()["system_fingerprint"] == whole(model="one")["system_fingerprint"]
    assert whole(model="two")["system_fingerprint"] != whole()["system_fingerprint"]


@pytest.mark.parametrize("asked, named", [("two", "two"), ("two.gguf", "two"), ("three.gguf", "three.gguf")])
def test_model_is_the_profile_that_answers(whole, chunks, asked, named):
    assert whole(model=asked)["model"] == named
    assert {chunk["model"] for chunk in chunks(model=asked)} == {named}


def test_an_unknown_model_is_404_and_names_those_there_are(scripted):
    for stream in (False, True):
        response = scripted.call("POST", "/v1/chat/completions",
                                 json={"messages": USER, "model": "gpt-4o", "stream": stream})
        assert (response.status_code, response.json["error"]["code"]) == (404, "model_not_found")
        assert "one, two" in response.json["message"] and response.json["error"]["param"] == "model"


def test_a_stream(scripted, chunks):
    scripted.parts.chat.events = [Beat(), Waiting(1, 2.0), Delta("y"), Beat(), Delta("es"), final("yes")]
    first, *more, last = chunks()
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None,
                                 "finish_reason": None}]
    assert [chunk["choices"][0]["delta"] for chunk in more] == [{"content": "y"}, {"content": "es"}]
    assert last["choices"][0]["delta"] == {} and last["choices"][0]["finish_reason"] == "stop"
    assert "timings" in last and len({chunk["id"] for chunk in (first, *more, last)}) == 1
    assert all("usage" not in chunk and chunk["object"] == "chat.completion.chunk" for chunk in (first, *more, last))


def test_usage_is_in_a_chunk_of_its_own(chunks, whole):
    *chunked, last = chunks(stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunked)
    assert (last["choices"], last["usage"]) == ([], whole()["usage"])


def test_reasoning_and_calls(scripted, whole, chunks):
    scripted.parts.chat.events = [
        Reasoned("h"), Reasoned("m"), Called(0, id="call_a", name="weather"), Called(0, '{"at":'), Called(0, '"x"}'),
        Called(1, "{}", "call_b", "now"), replace(final(), reasoning="hm", calls=CALLS)]
    choice, = whole()["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"] == {
        "role": "assistant", "content": None, "refusal": None, "reasoning_content": "hm",
        "tool_calls": [call.shape() for call in CALLS]}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks()]
    assert deltas == [
        {"role": "assistant", "content": ""}, {"reasoning_content": "h"}, {"reasoning_content": "m"},
        {"tool_calls": [{"index": 0, "id": "call_a", "type": "function",
                         "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"at":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"x"}'}}]},
        {"tool_calls": [{"index": 1, "id": "call_b", "type": "function",
                         "function": {"name": "now", "arguments": "{}"}}]}, {}]


def test_an_answer_that_is_only_a_call_begins_without_content(scripted, chunks):
    scripted.parts.chat.events = [Called(0, "{}", "call_a", "now"), replace(final(), calls=CALLS[:1])]
    assert chunks()[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}


def test_logprobs(scripted, whole, chunks):
    scripted.parts.chat.events = [Delta("", (LIKELY,)), Delta("é", (LIKELY,)), Delta("!"),
                                  replace(final("é!"), logprobs=(LIKELY, LIKELY))]
    half = {"token": "\ufffd", "bytes": [0xc3], "logprob": -0.5}
    shown = {**half, "top_logprobs": [half, {"token": "no", "bytes": [110, 111], "logprob": -9999.0}]}
    assert whole(logprobs=True, top_logprobs=2)["choices"][0]["logprobs"] == {"content": [shown] * 2, "refusal": None}
    found = [chunk["choices"][0] for chunk in chunks(logprobs=True, top_logprobs=2)]
    assert [choice["delta"].get("content") for choice in found] == ["", "", "é", "!", None]
    assert [choice["logprobs"] and choice["logprobs"]["content"] for choice in found] == [None, [shown], [shown], None,
                                                                                         None]
    assert whole()["choices"][0]["logprobs"] is None


def test_several_answers(scripted, whole, chunks):
    answer = whole(n=3)
    assert sorted(scripted.parts.admissions.charged) == [(0, 2), (0, 2), (7, 2)]      # as the usage tells
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13,
                               "prompt_tokens_details": {"cached_tokens": 3}}
    assert "timings" not in answer
    *found, last = chunks(n=3, stream_options={"include_usage": True})
    assert last["usage"] == answer["usage"]
    for index in range(3):
        mine = [chunk["choices"][0] for chunk in found if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "yes"
        assert [choice["finish_reason"] for choice in mine] == [None, None, "stop"]


def test_the_session_and_warnings_are_told(scripted, whole, chunks):
    scripted.parts.chat.events = [Delta("yes"), replace(final("yes", "7"), warnings=("cut",))]
    assert (whole()["session_id"], whole()["warnings"]) == (7, ["cut"])
    *chunked, last = chunks()
    assert (last["session_id"], last["warnings"]) == (7, ["cut"]) and "session_id" not in chunked[0]


def test_an_error_is_a_status_before_the_first_word_and_an_event_after_it(scripted):
    body = {"messages": USER, "stream": True}
    scripted.parts.chat.events = [RunnerCrashed("gone", retry_after=1)]
    response = scripted.call("POST", "/v1/chat/completions", json=body)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    scripted.parts.chat.events = [Delta("y"), RunnerCrashed("gone")]
    text = scripted.call("POST", "/v1/chat/completions", json=body).text
    last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "runner_crashed" and "[DONE]" not in text


@pytest.mark.parametrize("error, told", [
    (QuotaSpent("spent", retry_after=86400), "false"), (Conflict("mismatch"), "false"), (StorageFull("x"), "false"),
    (DeadlineExceeded("x"), "false"), (TooManyRequests("x", retry_after=1), None), (RunnerCrashed("x"), None),
    (SessionBusy("x", retry_after=1), None), (BadRequest("x"), None)])
def test_clients_are_told_when_another_try_is_in_vain(scripted, error, told):
    scripted.parts.chat.events = [error]
    response = scripted.call("POST", "/v1/chat/completions", json={"messages": USER})
    assert response.headers.get("X-Should-Retry") == told


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("inside, told", [("prompt", "messages"), ("schema", "response_format"), ("tools", "tools")])
def test_errors_name_the_field_of_this_body(scripted, stream, inside, told):
    scripted.parts.chat.events = [BadRequest("wrong", param=inside)]
    response = scripted.call("POST", "/v1/chat/completions", json={"messages": USER, "stream": stream})
    assert (response.status_code, response.json["error"]["param"]) == (400, told)


def test_a_retry_with_the_same_key_gets_the_first_answer(scripted):
    for stream in (False, True):
        body, headers = {"messages": USER, "stream": stream}, {"Idempotency-Key": f"k{stream}"}
        first, second = (scripted.call("POST", "/v1/chat/completions", json=body, headers=headers) for _ in range(2))
        assert first.text == second.text and "chatcmpl-" in first.text
    assert len(scripted.parts.chat.asked) == 2


CHATML = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
          "<|im_start|>assistant\n{# <think> #}")


def test_what_a_model_thinks_is_told_apart_in_streams_too(world, monkeypatch):
    def script(request):
        for text in ("<thi", "nk>H", "m.</think>", "\n\nY", "es"):
            yield Piece(id=request.id, text=text)
        yield Done(id=request.id, finish_reason="stop", prompt_tokens=4, completion_tokens=5, cached_tokens=0,
                   processed_tokens=4)
    monkeypatch.setattr(FakeLease, "ready", replace_struct(READY, chat_template=CHATML))
    (world.settings.data_dir / "config.json").write_text(json.dumps({
        "SelectedModel": "one", "one": {"model": "one.gguf", "n_ctx": 512, "chat_format": "model"}}))
    world.parts.engine.script = script
    answer = world.call("POST", "/v1/chat/completions", json={"messages": USER}).json["choices"][0]["message"]
    assert (answer["content"], answer["reasoning_content"]) == ("Yes", "Hm.")
    text = world.call("POST", "/v1/chat/completions", json={"messages": USER, "stream": True}).text
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in text.split("\n\n") if line.startswith("data: {")]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes"


def test_the_whole_pipeline_answers_and_keeps_a_session(world):
    for text, system in [("one", None), ("two", None)]:
        reply = world.call("POST", "/v1/chat/completions", json={"messages": [{"role": "user", "content": text}]},
                           headers={"X-Session-Id": "talk"})
        assert reply.json["choices"][0]["message"]["content"] == f"you said: {text}", system
        assert reply.json["session_id"] == "talk"
    turns = world.call("GET", "/answer/talk").json["turns"]
    assert [turn["content"] for turn in turns] == ["one", "you said: one", "two", "you said: two"]
    assert "you said: one" in "".join(world.parts.engine.requests[-1].prompt)
