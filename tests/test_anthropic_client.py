"""The official client of Anthropic's API against a started server: what it reads is what it would read there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.conftest import MASTER, STARTER, Server, make_home

CONFIG = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 4096, "max_tokens": 128}}
TOOL: Any = {"name": "weather", "description": "The weather of a city.",
             "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(make_home(tmp_path_factory.mktemp("anthropic") / "home", CONFIG)).start()
    yield server
    server.end()


def client(server: Server, key: str = MASTER, **more: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, **{"max_retries": 0, **more})


@pytest.fixture
def ask(server: Server) -> Iterator[anthropic.Anthropic]:
    with client(server) as ask:
        yield ask


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "one", "max_tokens": 100, "messages": [{"role": "user", "content": text}], **more}


def test_a_message(ask: anthropic.Anthropic) -> None:
    message = ask.messages.create(**said("good day", system="Be kind."))
    assert (message.type, message.role, message.model) == ("message", "assistant", "one")
    block, = message.content
    assert block.type == "text" and block.text == "You said: good day"
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens == 4 and message.usage.input_tokens > 2
    assert message.id.startswith("msg_") and message._request_id


def test_why_a_message_ends(ask: anthropic.Anthropic) -> None:
    short = ask.messages.create(**said("!tokens 9", max_tokens=3))
    assert (short.stop_reason, short.content[0].text) == ("max_tokens", "w1 w2 w3")
    stopped = ask.messages.create(**said("!tokens 9", stop_sequences=["zz", " w5"]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " w5")
    assert stopped.content[0].text == "w1 w2 w3 w4"


def test_a_stream_is_the_same_message(ask: anthropic.Anthropic) -> None:
    plain = ask.messages.create(**said("!tokens 6"))
    with ask.messages.stream(**said("!tokens 6")) as stream:
        pieces = list(stream.text_stream)
        whole = stream.get_final_message()
    assert len(pieces) > 1 and "".join(pieces) == "w1 w2 w3 w4 w5 w6" == stream.get_final_text()
    both = [message.model_dump(exclude={"id"}, exclude_none=True) for message in (whole, plain)]
    assert both[0] == both[1]
    kinds = [event.type for event in ask.messages.create(**said("!tokens 1"), stream=True)]
    assert kinds == ["message_start", "content_block_start", "content_block_delta", "content_block_stop",
                     "message_delta", "message_stop"]


def test_tools_there_and_back(ask: anthropic.Anthropic) -> None:
    question = said('!echo I look !call weather {"city": "Bern"}', tools=[TOOL])
    message = ask.messages.create(**question)
    text, use = message.content
    assert text.type == "text" and text.text == "I look"
    assert use.type == "tool_use" and (use.name, use.input) == ("weather", {"city": "Bern"})
    assert message.stop_reason == "tool_use"
    with ask.messages.stream(**question) as stream:
        inputs = [event.partial_json for event in stream if event.type == "input_json"]
        streamed = stream.get_final_message()
    assert json.loads("".join(inputs)) == use.input == streamed.content[1].input
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"},
                                          {"type": "text", "text": "so?"}]}
    again: Any = [*question["messages"], {"role": "assistant", "content": message.content}, result]
    answer = ask.messages.create(**{**question, "messages": again})
    assert answer.content[0].text == "You said: so?" and answer.usage.input_tokens > message.usage.input_tokens


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_tool_that_must_be_called(ask: anthropic.Anthropic, choice: Any) -> None:
    message = ask.messages.create(**said("hello", tools=[TOOL], tool_choice=choice))
    assert [block.type for block in message.content] == ["tool_use"]
    none = ask.messages.create(**said("hello", tools=[TOOL], tool_choice={"type": "none"}))
    assert none.content[0].text == "You said: hello" and none.stop_reason == "end_turn"


def test_a_session_keeps_the_history(ask: anthropic.Anthropic, server: Server) -> None:
    here = {"X-Session-Id": "77"}
    ask.messages.create(**said("My name is Ada."), extra_headers=here)
    message = ask.messages.create(**said("What is my name?"), extra_headers=here)
    assert "Ada" in message.content[0].text
    by_metadata = ask.messages.create(**said("What is my name?"), extra_body={"metadata": {"session_id": 77}})
    assert by_metadata.content[0].text == message.content[0].text
    assert len(server.call("GET", "/answer/77").json()["turns"]) == 6
    assert "Ada" not in ask.messages.create(**said("What is my name?")).content[0].text


def test_tokens_are_counted_as_they_are_charged(ask: anthropic.Anthropic) -> None:
    question = said("How long is this?", system="Be brief.")
    usage = ask.messages.create(**question).usage
    question.pop("max_tokens")
    counted = ask.messages.count_tokens(**question).input_tokens
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert ask.messages.count_tokens(**question, tools=[TOOL]).input_tokens > counted
    assert ask.messages.count_tokens(**{**question, "system": "Be as brief as you can."}).input_tokens == counted + 4


def test_errors_are_the_clients_own(ask: anthropic.Anthropic, server: Server) -> None:
    for wrong, status, kind, told in [
            ({"model": "claude-nothing"}, anthropic.NotFoundError, "not_found_error", "one"),
            ({"extra_body": {"x": 1}}, anthropic.BadRequestError, "invalid_request_error", "x: Extra inputs are not"),
            ({"messages": []}, anthropic.BadRequestError, "invalid_request_error", "messages: "),
            ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, anthropic.BadRequestError,
             "invalid_request_error", "web_search_20250305"),
            ({"messages": [{"role": "user", "content": "!fail unavailable"}]}, anthropic.ServiceUnavailableError,
             "overloaded_error", "asked for")]:
        for stream in (False, True):
            with pytest.raises(status) as caught:
                ask.messages.create(**{**said("x"), **wrong}, stream=stream)
            assert (caught.value.type, told in str(caught.value.api_message)) == (kind, True), caught.value
            assert caught.value.request_id and caught.value.error_code
    with client(server, "wrong") as stranger, pytest.raises(anthropic.AuthenticationError) as refused:
        stranger.messages.create(**said("x"))
    assert refused.value.type == "authentication_error"
    with client(server, server.make_key(scopes=["models:read"])) as reader, \
            pytest.raises(anthropic.PermissionDeniedError):
        reader.messages.create(**said("x"))


def test_an_error_in_a_stream(ask: anthropic.Anthropic) -> None:
    pieces = []
    with pytest.raises(anthropic.APIStatusError) as caught, ask.messages.stream(**said("!tokens 9 !close 3")) as stream:
        pieces.extend(stream.text_stream)
    assert pieces and caught.value.type == "overloaded_error" and "ask again" in str(caught.value.api_message)


def test_a_limit_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(anthropic._base_client.time, "sleep", slept.append)
    key = server.make_key(requests_per_minute=1)
    with client(server, key, max_retries=2) as ask:
        ask.messages.create(**said("x"))
        with pytest.raises(anthropic.RateLimitError) as caught:
            ask.messages.create(**said("x"))
    assert caught.value.type == "rate_limit_error"
    wait = float(caught.value.response.headers["retry-after"])
    assert len(slept) == 2 and 0 < wait <= 60 and all(abs(seconds - wait) <= 2 for seconds in slept)


@pytest.mark.model
@pytest.mark.skipif(not STARTER.exists(), reason="the starter model is not there")
def test_a_real_model(tmp_path: Path) -> None:
    config = {"SelectedModel": "chat", "chat": {"model": "starter.gguf", "n_ctx": 1024, "n_threads": 1}}
    server = Server(make_home(tmp_path / "home", config), runner="llama").start()
    try:
        with client(server) as ask:
            question = {**said("Hello! My name is Mia.", max_tokens=40), "model": "chat", "temperature": 1, "seed": 5}
            more = {name: question.pop(name) for name in ("temperature", "seed")}
            plain = ask.messages.create(**question, extra_body=more)
            with ask.messages.stream(**question, extra_body=more) as stream:
                assert stream.get_final_text() == plain.content[0].text != ""
            forced = ask.messages.create(**question, tools=[TOOL], tool_choice={"type": "any"}, extra_body=more)
            use = forced.content[-1]
            assert use.type == "tool_use" and use.name == "weather" and isinstance(use.input["city"], str)
            counted = ask.messages.count_tokens(model="chat", messages=question["messages"]).input_tokens
            usage = plain.usage
            assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    finally:
        server.end()
