"""`POST /v1/messages` over scripted events: what is asked of the pipeline, and how its events are told."""

from __future__ import annotations

import json

import pytest

from services import wire
from services.chat.events import Ask, Beat, Called, Delta, Final, Reasoned, Waiting
from services.chat.messages import Call, Message, Tool, Toolbox
from services.errors import NotFound, ParleyError, RunnerCrashed, TooManyRequests
from services.web.anthropic import replies
from tests.services.web.conftest import World

ASK = {"model": "one", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}
TOOL = {"name": "weather", "description": "of a city", "input_schema": {"type": "object", "properties": {}}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}}


def asked(world: World, path: str = "/v1/messages", **body) -> Ask:
    response = world.call("POST", path, json={**ASK, **body})
    assert response.status_code == 200, response.text
    return world.parts.chat.asked[-1]


def refused(world: World, **body) -> dict:
    response = world.call("POST", "/v1/messages", json={**ASK, **body})
    assert response.status_code == 400, response.text
    assert response.json["type"] == "error" and response.json["error"]["type"] == "invalid_request_error"
    return response.json["error"]


def final(reason: str = "stop", stopped_by: str = "", calls: tuple[Call, ...] = ()) -> Final:
    done = wire.Done(id="x", finish_reason=reason, prompt_tokens=7, completion_tokens=2, cached_tokens=3,
                     processed_tokens=4, stopped_by=stopped_by)
    return Final(result="", session_id=None, profile="one", model="one.gguf", done=done, context={}, calls=calls)


def streamed(world: World, **body) -> list[dict]:
    """The events, each named after its type."""
    response = world.call("POST", "/v1/messages", json={**ASK, "stream": True, **body})
    assert response.status_code == 200 and response.mimetype == "text/event-stream"
    events = []
    for block in response.text.split("\n\n"):
        if block.startswith("event: "):
            name, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
            replies.AnthropicEvent.model_validate(events[-1])
        else:
            assert block in ("", ": hb")
    return events


def whole(world: World, **body) -> dict:
    response = world.call("POST", "/v1/messages", json={**ASK, **body})
    assert response.status_code == 200, response.text
    replies.AnthropicMessage.model_validate(response.json)
    return response.json


def put_together(events: list[dict]) -> dict:
    """The message that a stream's events make."""
    message: dict = {}
    for event in events:
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "content_block_start":
            message["content"].append(dict(event["content_block"]))
            assert event["index"] == len(message["content"]) - 1
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], dict(event["delta"])
            kind = delta.pop("type").removesuffix("_delta")
            block[kind] = block.get(kind, "") + next(iter(delta.values()))
        elif event["type"] == "content_block_stop":
            block = message["content"][event["index"]]
            if "input_json" in block:
                block["input"] = json.loads(block.pop("input_json"))
        elif event["type"] == "message_delta":
            message.update(event["delta"], usage=event["usage"])
    return message


# ---------------------------------------------------------------- what is asked

@pytest.mark.parametrize(("thinking", "thinks"), [
    (None, False), ({"type": "disabled"}, False), ({"type": "adaptive"}, True), ({"type": "between_tools"}, True),
    ({"type": "enabled", "budget_tokens": 1024}, True), ({"type": "adaptive", "display": "omitted"}, True)])
def test_a_model_thinks_where_it_is_asked_to(scripted: World, thinking: dict | None, thinks: bool) -> None:
    assert asked(scripted, thinking=thinking).thinking is thinks


def test_all_fields_reach_the_pipeline(scripted: World) -> None:
    ask = asked(scripted, temperature=0.5, top_p=0.9, top_k=7, seed=3, stop_sequences=["END"], service_tier="auto",
                metadata={"user_id": "u", "session_id": 12}, system="Be brief.", cache_control={"type": "ephemeral"},
                thinking={"type": "enabled", "budget_tokens": 1024})
    assert ask.messages == (Message("system", "Be brief."), Message("user", "hello"))
    assert (ask.model, ask.max_tokens, ask.temperature, ask.top_p, ask.top_k) == ("one", 50, 0.5, 0.9, 7)
    assert (ask.seed, ask.stop, ask.session_id, ask.tools, ask.stream) == (3, ("END",), "12", None, False)
    assert asked(scripted, "/messages").session_id is None


def test_blocks_are_messages(scripted: World) -> None:
    ask = asked(scripted, system=[{"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
                                  {"type": "text", "text": "b"}], messages=[
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I look", "citations": None}, USE,
            {**USE, "id": "toolu_2", "caller": {"type": "direct"}}]},
        {"role": "user", "content": [
            {"type": "text", "text": "and now?"}, {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sun"},
            {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True,
             "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "net"}]}]}])
    arguments = '{"city": "Bern"}'
    assert ask.messages == (
        Message("system", "a\nb"), Message("user", "one\ntwo\n\nthree"),
        Message("assistant", "I look", (Call("toolu_1", "weather", arguments), Call("toolu_2", "weather", arguments)),
                reasoning="hm"),
        Message("tool", "sun", call_id="toolu_1", name="weather"),
        Message("tool", "Error: no\nnet", call_id="toolu_2", name="weather"), Message("user", "and now?"))


def test_turns_of_one_role_are_one_message_in_linear_time(scripted: World) -> None:
    """20,000 of them once took a worker minutes."""
    turns = [{"role": "user", "content": "x" * 100}] * 20_000
    ask = asked(scripted, messages=[*turns, {"role": "assistant", "content": "so"},
                                    {"role": "assistant", "content": [{"type": "text", "text": "it"}, USE]},
                                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1"}]}])
    assert [(message.role, len(message.content)) for message in ask.messages] == [
        ("user", 20_000 * 102 - 2), ("assistant", 6), ("tool", 0)]
    assert [call.id for call in ask.messages[1].calls] == ["toolu_1"]


def test_an_answer_may_be_begun(scripted: World) -> None:
    ask = asked(scripted, messages=[*ASK["messages"], {"role": "assistant", "content": [
        {"type": "text", "text": "The answer is"}, {"type": "text", "text": "("}]}])
    assert ask.messages == (Message("user", "hello"), Message("assistant", "The answer is\n("))


def test_tools_and_the_choice_among_them(scripted: World) -> None:
    tool = Tool("weather", "of a city", TOOL["input_schema"])
    for choice, box in [
            (None, Toolbox((tool,))), ({"type": "auto"}, Toolbox((tool,))), ({"type": "none"}, None),
            ({"type": "any", "disable_parallel_tool_use": True}, Toolbox((tool,), "required", parallel=False)),
            ({"type": "tool", "name": "weather"}, Toolbox((tool,), "required", "weather"))]:
        assert asked(scripted, tools=[{**TOOL, "type": "custom"}], tool_choice=choice).tools == box
    for strict in (True, False, None):
        assert asked(scripted, tools=[{**TOOL, "strict": strict}]).tools.tools[0].strict is (strict is True)
    schema = {"type": "object"}
    assert asked(scripted, output_config={"effort": "low", "format": {"type": "json_schema", "schema": schema}}
                 ).schema == schema


def test_in_a_session_only_what_is_new_is_sent(scripted: World) -> None:
    result = [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_9", "content": "sun"}]}]
    response = scripted.call("POST", "/v1/messages", json={**ASK, "messages": result}, headers={"X-Session-Id": "s1"})
    assert response.status_code == 200
    ask = scripted.parts.chat.asked[-1]
    assert (ask.session_id, ask.messages) == ("s1", (Message("tool", "sun", call_id="toolu_9"),))
    assert refused(scripted, messages=result)["param"] == "messages.0.content.0.tool_use_id"


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}


@pytest.mark.parametrize(("body", "param", "told"), [
    ({"max_tokens": None}, "max_tokens", "max_tokens: "),
    ({"model": None}, "model", "model: "),
    ({"messages": []}, "messages", "messages: should have at least 1"),
    ({"frobnicate": 1}, "frobnicate", "frobnicate: Extra inputs are not permitted"),
    ({"metadata": {"x": 1}}, "metadata.x", "metadata.x: Extra inputs are not permitted"),
    ({"temperature": 1.5}, "temperature", "less than or equal to 1"),
    ({"system": [IMAGE]}, "system.0", "'image' are not taken"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role", "'user' or 'assistant'"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}]}, "messages.0.content.1",
     "messages.0.content.1: blocks of the type 'image' are not taken"),
    ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "messages.0.content.0",
     "'document'"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text.text", "required"),
    ({"messages": [{"role": "user", "content": [USE]}]}, "messages.0.content.0", "cannot be in messages of the user"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages.0.content", "blank"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content", "blank"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0",
     "'web_search_20250305' is a tool of Anthropic's"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name", "no name for a tool"),
    ({"tools": [TOOL, TOOL]}, "tools.1.name", "two tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice", "none of the tools"),
    ({"tool_choice": {"type": "any"}}, "tool_choice", "no tools"),
    ({"tools": [TOOL], "output_config": {"format": {"type": "json_schema", "schema": {}}}}, "output_config.format",
     "cannot be combined"),
])
def test_mistakes_are_named(scripted: World, body: dict, param: str, told: str) -> None:
    error = refused(scripted, **body)
    assert (error["param"], told in error["message"]) == (param, True), error


# ---------------------------------------------------------------- what is told

def test_a_plain_answer(scripted: World) -> None:
    scripted.parts.chat.events = [Delta("Hello"), Delta(" you"), final()]
    message = whole(scripted)
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message", "role": "assistant", "model": "one", "content": [{"type": "text", "text": "Hello you"}],
        "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 4, "output_tokens": 2, "cache_read_input_tokens": 3,
                  "cache_creation_input_tokens": 0}}


def test_the_events_of_a_stream(scripted: World) -> None:
    scripted.parts.chat.events = [Waiting(1, 2.0), Beat(), Delta("Hello"), Beat(), Delta(" you"), final()]
    start, *events, last, stop = streamed(scripted)
    assert start["message"]["content"] == [] and start["message"]["stop_reason"] is None
    assert events == [
        {"type": "ping"}, {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " you"}},
        {"type": "content_block_stop", "index": 0}]
    assert last["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert last["usage"]["input_tokens"] == 4 and stop == {"type": "message_stop"}


THOUGHT = [Reasoned("let me"), Reasoned(" see"), Delta("I look"), Called(0, id="call_a", name="weather"),
           Called(0, '{"city":'), Called(0, ' "Bern"}'), Called(1, id="call_b", name="clock"), Called(1, "{}"),
           final(calls=(Call("call_a", "weather", '{"city": "Bern"}'), Call("call_b", "clock", "{}")))]


def test_thinking_text_and_calls_are_blocks(scripted: World) -> None:
    scripted.parts.chat.events = THOUGHT
    message = whole(scripted, thinking={"type": "enabled", "budget_tokens": 1024})
    assert message["content"] == [
        {"type": "thinking", "thinking": "let me see", "signature": ""}, {"type": "text", "text": "I look"},
        {"type": "tool_use", "id": "call_a", "name": "weather", "input": {"city": "Bern"}},
        {"type": "tool_use", "id": "call_b", "name": "clock", "input": {}}]
    assert message["stop_reason"] == "tool_use"


@pytest.mark.parametrize("thinking", [None, {"type": "disabled"}, {"type": "adaptive", "display": "omitted"}])
def test_who_does_not_ask_for_thinking_gets_none(scripted: World, thinking: dict | None) -> None:
    scripted.parts.chat.events = THOUGHT
    kinds = [block["type"] for block in whole(scripted, thinking=thinking)["content"]]
    assert kinds == ["text", "tool_use", "tool_use"]


@pytest.mark.parametrize("events", [
    THOUGHT, [Delta("a"), Called(0, id="c", name="n"), Called(0, "{}"), Delta("b"), final()], [final()],
    [Called(0, id="c", name="n"), Called(0, '{"cut": '), final("length")]])
def test_a_stream_makes_the_plain_answer(scripted: World, events: list) -> None:
    scripted.parts.chat.events = events
    plain = whole(scripted, thinking={"type": "adaptive"})
    if events[-1].done.finish_reason == "length":       # a call that was cut has no input; its stream is no JSON
        assert plain["content"][0]["input"] == {} and plain["stop_reason"] == "max_tokens"
        return
    stream = put_together(streamed(scripted, thinking={"type": "adaptive"}))
    assert stream.pop("id") != plain.pop("id") and stream == plain


@pytest.mark.parametrize(("end", "reason", "sequence"), [
    (final("length"), "max_tokens", None), (final(stopped_by="END"), "stop_sequence", "END"),
    (final(stopped_by="<|im_end|>"), "end_turn", None), (final("cancelled"), "end_turn", None)])
def test_why_it_stopped(scripted: World, end: Final, reason: str, sequence: str | None) -> None:
    scripted.parts.chat.events = [Delta("x"), end]
    message = whole(scripted, stop_sequences=["END"])
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(("error", "status", "kind"), [
    (NotFound("no", code="model_not_found"), 404, "not_found_error"), (RunnerCrashed("no"), 503, "overloaded_error"),
    (TooManyRequests("no", retry_after=3), 429, "rate_limit_error"), (ParleyError("no"), 500, "api_error")])
def test_errors_are_anthropics(scripted: World, error: ParleyError, status: int, kind: str) -> None:
    scripted.parts.chat.events = [error]
    for stream in (False, True):
        response = scripted.call("POST", "/v1/messages", json={**ASK, "stream": stream})
        assert response.status_code == status and response.headers["Request-Id"] == response.headers["X-Request-Id"]
        told = response.json
        assert (told["type"], told["message"], told["error"]["type"]) == ("error", "no", kind)
        assert told["error"]["details"] == {"error_code": error.code} and told["error"]["code"] == error.code
    scripted.parts.chat.events = [Delta("x"), error]
    last = streamed(scripted)[-1]
    assert last["type"] == "error" and (last["error"]["type"], last["error"]["message"]) == (kind, "no")


def test_the_gates_errors_are_anthropics_too(scripted: World) -> None:
    response = scripted.call("POST", "/messages", json=ASK, key=None, headers={"x-api-key": "wrong"})
    assert response.status_code == 401 and response.json["error"]["type"] == "authentication_error"
    assert response.json["type"] == "error"
    assert scripted.call("POST", "/v1/messages", data="{", content_type="application/json").json["type"] == "error"
    assert "type" not in scripted.call("GET", "/nothing").json


def test_a_retry_with_its_key_gets_the_same_message(scripted: World) -> None:
    scripted.parts.chat.events = [Delta("once"), final()]
    answers = [scripted.call("POST", "/v1/messages", json=ASK, headers={"Idempotency-Key": "k"}).json for _ in range(2)]
    assert answers[0] == answers[1] and len(scripted.parts.chat.asked) == 1
