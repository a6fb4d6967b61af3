"""The official client of OpenAI's Responses API against a started server: what it reads is what it would read there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from tests.conftest import MASTER, STARTER, Server, make_home

CONFIG = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 4096, "max_tokens": 128}}
WEATHER: Any = {"type": "function", "name": "weather", "description": "The weather of a city.", "strict": True,
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
                               "additionalProperties": False}}


class City(BaseModel):
    name: str
    people: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(make_home(tmp_path_factory.mktemp("responses") / "home", CONFIG), WEB_WORKERS="2").start()
    yield server
    server.end()


def client(server: Server, key: str = MASTER, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, **{"max_retries": 0, **more})


@pytest.fixture
def ask(server: Server) -> Iterator[openai.OpenAI]:
    with client(server) as ask:
        yield ask


def wait_until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def turns(server: Server, response: Response) -> list[str]:
    """What the session of `response` holds, as `/answer/<id>` shows it."""
    session = response.model_extra["session_id"]
    return [turn["content"] for turn in server.call("GET", f"/answer/{session}").json()["turns"]]


# ---------------------------------------------------------------- one response

def test_a_response(ask: openai.OpenAI) -> None:
    response = ask.responses.create(model="one", input="good day", instructions="Be kind.", temperature=0.5, top_p=0.9,
                                    max_output_tokens=50, metadata={"a": "b"}, user="me", truncation="auto",
                                    reasoning={"effort": "low"}, text={"verbosity": "low"}, parallel_tool_calls=True)
    assert response.output_text == "You said: good day"
    assert (response.object, response.status, response.model, response.error) == ("response", "completed", "one", None)
    assert (response.instructions, response.temperature, response.top_p) == ("Be kind.", 0.5, 0.9)
    assert (response.max_output_tokens, response.metadata, response.user) == (50, {"a": "b"}, "me")
    assert (response.truncation, response.reasoning.effort, response.text.verbosity) == ("auto", "low", "low")
    assert response.completed_at >= response.created_at > 1e9 and response.id.startswith("resp_")
    message, = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    usage = response.usage
    assert usage.output_tokens == 4 and usage.total_tokens == usage.input_tokens + 4 > 6
    assert usage.input_tokens_details.cached_tokens >= 0 and usage.output_tokens_details.reasoning_tokens == 0


def test_without_version(server: Server) -> None:
    response = server.call("POST", "/responses", json={"input": "x"}).json()
    assert server.call("GET", f"/responses/{response['id']}").json() == response


def test_input_items(ask: openai.OpenAI) -> None:
    response = ask.responses.create(input=[
        {"role": "developer", "content": "Short answers."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "my name is Ada"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hello", "annotations": []}]},
        {"role": "user", "content": "What is my name?"}], model="one")
    assert response.output_text == "Your name is Ada."
    items = ask.responses.input_items.list(response.id)
    assert [item.role for item in items] == ["user", "assistant", "user", "developer"]
    first, second = ask.responses.input_items.list(response.id, order="asc", limit=2).data
    assert (first.content[0].text, second.content[0].text) == ("Short answers.", "my name is Ada")
    assert len({item.id for item in items}) == 4
    page = ask.responses.input_items.list(response.id, order="asc", limit=3)
    assert page.has_more and [item.id for item in page.get_next_page()] == [next(iter(items)).id]


def test_a_response_that_is_cut(ask: openai.OpenAI) -> None:
    response = ask.responses.create(model="one", input="!tokens 9", max_output_tokens=3)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output_text, response.output[0].status) == ("w1 w2 w3", "incomplete")
    events = list(ask.responses.create(model="one", input="!tokens 9", max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete" and events[-1].response.status == "incomplete"
    assert ask.responses.retrieve(response.id).model_dump() == response.model_dump()


def test_log_probabilities(ask: openai.OpenAI) -> None:
    response = ask.responses.create(model="one", input="!tokens 2", include=["message.output_text.logprobs"],
                                    top_logprobs=2)
    told = response.output[0].content[0].logprobs
    assert "".join(one.token for one in told).strip() == "w1 w2" and all(len(one.top_logprobs) == 2 for one in told)
    assert bytes(told[0].bytes).decode() == told[0].token and told[0].logprob <= 0
    deltas = [event for event in ask.responses.create(model="one", input="!tokens 2", top_logprobs=1, stream=True)
              if event.type == "response.output_text.delta"]
    assert [one.token for event in deltas for one in event.logprobs] == [one.token for one in told]


# ---------------------------------------------------------------- streams

def test_a_stream_is_the_same_response(ask: openai.OpenAI) -> None:
    plain = ask.responses.create(model="one", input="!tokens 6")
    with ask.responses.stream(model="one", input="!tokens 6") as stream:
        events = list(stream)
        whole = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 1 and kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        *["response.output_text.delta"] * deltas, "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.completed"]
    assert whole.output_text == "w1 w2 w3 w4 w5 w6" == plain.output_text
    assert whole.usage.output_tokens == plain.usage.output_tokens
    assert ask.responses.retrieve(whole.id).output_text == whole.output_text
    assert events[0].response.id == whole.id and events[0].response.output == []


def test_an_answer_that_fails(ask: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        ask.responses.create(model="one", input="!tokens 9 !die SIGKILL 3")
    assert caught.value.status_code == 503 and caught.value.code == "runner_crashed"
    *_, last = ask.responses.create(model="one", input="!tokens 9 !die SIGKILL 3", stream=True)
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error.code == "server_error" and last.response.error.message
    assert last.response.output_text == "w1 w2 w3"
    kept = ask.responses.retrieve(last.response.id)
    assert (kept.status, kept.output_text) == ("failed", "w1 w2 w3") and "runner_crashed" in kept.error.message


# ---------------------------------------------------------------- tools and structured text

def test_tools_there_and_back(ask: openai.OpenAI) -> None:
    first = ask.responses.create(model="one", input='!echo I look !call weather {"city": "Bern"}', tools=[WEATHER])
    text, call = first.output
    assert (text.type, first.output_text, call.type) == ("message", "I look", "function_call")
    assert (call.name, json.loads(call.arguments), call.status) == ("weather", {"city": "Bern"}, "completed")
    assert first.status == "completed" and first.tools[0].name == "weather" and first.tool_choice == "auto"
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = ask.responses.create(model="one", previous_response_id=first.id, tools=[WEATHER], input=[
        output, {"role": "user", "content": "so?"}])
    assert second.output_text == "You said: so?" and second.usage.input_tokens > first.usage.input_tokens
    assert ask.responses.retrieve(first.id).output == first.output
    whole: Any = [{"role": "user", "content": "weather?"}, *first.output, output, {"role": "user", "content": "so?"}]
    third = ask.responses.create(model="one", input=whole, tools=[WEATHER], store=False)
    assert third.output_text == "You said: so?"
    for more in ({}, {"previous_response_id": second.id}):
        with pytest.raises(openai.BadRequestError, match="No tool call found for function call output") as caught:
            ask.responses.create(model="one", input=[{**output, "call_id": "call_none"}], **more)
        assert caught.value.param == "input.0.call_id"


def test_a_call_in_a_stream(ask: openai.OpenAI) -> None:
    with ask.responses.stream(model="one", input='!call weather {"city": "Bern"}', tools=[WEATHER],
                              tool_choice="required") as stream:
        events = list(stream)
        response = stream.get_final_response()
    call, = response.output
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert "".join(deltas) == done.arguments == call.arguments and json.loads(call.arguments) == {"city": "Bern"}
    added = next(event for event in events if event.type == "response.output_item.added")
    assert (added.item.name, added.item.call_id, added.item.arguments) == ("weather", call.call_id, "")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"},
                                    {"type": "allowed_tools", "mode": "required",
                                     "tools": [{"type": "function", "name": "weather"}]}])
def test_a_call_that_must_be(ask: openai.OpenAI, choice: Any) -> None:
    other: Any = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}
    tools = [WEATHER, other]
    response = ask.responses.create(model="one", input="hello", tools=tools, tool_choice=choice)
    assert [item.type for item in response.output] == ["function_call"] and response.output[0].name == "weather"
    if not isinstance(choice, str):
        assert response.tool_choice.type == choice["type"]
    assert ask.responses.create(model="one", input="hi", tools=tools, tool_choice="none").output_text == "You said: hi"


def test_structured_text(ask: openai.OpenAI) -> None:
    question = '!echo {"name": "Bern", "people": 134591}'
    parsed = ask.responses.parse(model="one", input=question, text_format=City)
    assert parsed.output_parsed == City(name="Bern", people=134591)
    assert parsed.text.format.type == "json_schema" and parsed.text.format.name == "City"
    with ask.responses.stream(model="one", input=question, text_format=City) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    plain = ask.responses.create(model="one", input="!echo {}", text={"format": {"type": "json_object"}})
    assert plain.output_text == "{}" and plain.text.format.type == "json_object"


# ---------------------------------------------------------------- chains

def test_a_chain_is_a_session(server: Server, ask: openai.OpenAI) -> None:
    first = ask.responses.create(model="one", input="my name is Ada", instructions="Be short.")
    second = ask.responses.create(model="one", input="What is my name?", previous_response_id=first.id)
    assert second.output_text == "Your name is Ada." and second.instructions is None
    assert second.previous_response_id == first.id
    assert first.model_extra["session_id"] == second.model_extra["session_id"]
    assert turns(server, second) == ["my name is Ada", "You said: my name is Ada", "What is my name?",
                                     "Your name is Ada."]
    answered = server.answer("What is my name?", second.model_extra["session_id"]).json()
    assert answered["result"] == "Your name is Ada."


def test_a_branch_is_a_session_of_its_own(server: Server, ask: openai.OpenAI) -> None:
    first = ask.responses.create(model="one", input="my name is Ada")
    second = ask.responses.create(model="one", input="my name is Bob", previous_response_id=first.id)
    branch = ask.responses.create(model="one", input="What is my name?", previous_response_id=first.id)
    assert branch.output_text == "Your name is Ada."
    assert branch.model_extra["session_id"] != second.model_extra["session_id"]
    assert len(turns(server, branch)) == len(turns(server, second)) == 4
    again = ask.responses.create(model="one", input="What is my name?", previous_response_id=branch.id)
    assert again.model_extra["session_id"] == branch.model_extra["session_id"] and len(turns(server, again)) == 6
    for response in (first, second, branch, again):
        assert ask.responses.retrieve(response.id).output_text == response.output_text


def test_what_is_not_stored(server: Server, ask: openai.OpenAI) -> None:
    first = ask.responses.create(model="one", input="my name is Ada")
    before = server.call("GET", "/answer").json()
    aside = ask.responses.create(model="one", input="What is my name?", previous_response_id=first.id, store=False)
    assert aside.output_text == "Your name is Ada." and aside.store is False
    assert server.call("GET", "/answer").json() == before and len(turns(server, first)) == 2
    with pytest.raises(openai.NotFoundError):
        ask.responses.retrieve(aside.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ask.responses.create(model="one", input="x", previous_response_id=aside.id)
    assert caught.value.code == "previous_response_not_found" and caught.value.param == "previous_response_id"


@pytest.mark.parametrize("more", [{"extra_headers": {"X-Session-Id": "mine-1"}},
                                  {"metadata": {"session_id": "mine-2"}}])
def test_in_a_session_of_the_clients(server: Server, ask: openai.OpenAI, more: Any) -> None:
    ask.responses.create(model="one", input="my name is Ada", **more)
    second = ask.responses.create(model="one", input="What is my name?", **more)
    assert second.output_text == "Your name is Ada." and second.model_extra["session_id"] in ("mine-1", "mine-2")
    unstored = ask.responses.create(model="one", input="What is my name?", store=False, **more)
    assert unstored.output_text == "Your name is Ada." and len(turns(server, second)) == 6
    branch = ask.responses.create(model="one", input="x", previous_response_id=second.id)
    assert branch.model_extra["session_id"] != second.model_extra["session_id"]
    with pytest.raises(openai.BadRequestError, match="give one of them"):
        ask.responses.create(model="one", input="x", previous_response_id=branch.id, **more)


def test_a_restart_between(start: Any, home: Path) -> None:
    server = start(DATA_KEY="5d" * 32)
    with client(server) as ask:
        first = ask.responses.create(model="one", input="my name is Ada")
        deleted = ask.responses.create(model="one", input="secret word")
        ask.responses.delete(deleted.id)
    server.stop()
    with client(start(DATA_KEY="5d" * 32)) as ask:
        assert ask.responses.retrieve(first.id).model_dump() == first.model_dump()
        second = ask.responses.create(model="one", input="What is my name?", previous_response_id=first.id)
        assert second.output_text == "Your name is Ada."
        with pytest.raises(openai.NotFoundError):
            ask.responses.retrieve(deleted.id)
    kept = b"".join(path.read_bytes() for path in (home / "data").rglob("*") if path.is_file())
    assert b"secret word" not in kept and b"name is Ada" not in kept


def test_deleted(server: Server, ask: openai.OpenAI) -> None:
    first = ask.responses.create(model="one", input="my name is Ada")
    second = ask.responses.create(model="one", input="What is my name?", previous_response_id=first.id)
    session = first.model_extra["session_id"]
    ask.responses.delete(first.id)
    for gone in (ask.responses.retrieve, ask.responses.delete, ask.responses.cancel, ask.responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match=f"Response with id '{first.id}' not found"):
            gone(first.id)
    with pytest.raises(openai.BadRequestError):
        ask.responses.create(model="one", input="x", previous_response_id=first.id)
    third = ask.responses.create(model="one", input="What is my name?", previous_response_id=second.id)
    assert third.output_text == "Your name is Ada."
    ask.responses.delete(third.id)
    assert server.call("GET", f"/answer/{session}").status_code == 200
    ask.responses.delete(second.id)
    assert server.call("GET", f"/answer/{session}").status_code == 404


def test_of_another_key(server: Server, ask: openai.OpenAI) -> None:
    mine = ask.responses.create(model="one", input="x")
    with client(server, server.make_key()) as other:
        for call in (other.responses.retrieve, other.responses.delete, other.responses.cancel,
                     other.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                call(mine.id)
        with pytest.raises(openai.BadRequestError):
            other.responses.create(model="one", input="x", previous_response_id=mine.id)
    assert ask.responses.retrieve(mine.id).output_text == "You said: x"


# ---------------------------------------------------------------- in the background

def test_in_the_background(ask: openai.OpenAI) -> None:
    response = ask.responses.create(model="one", input="!wait 0.5 !tokens 3", background=True)
    assert response.status in ("queued", "in_progress") and response.background and response.output == []
    assert ask.responses.retrieve(response.id).status in ("queued", "in_progress")
    wait_until(lambda: ask.responses.retrieve(response.id).status == "completed")
    done = ask.responses.retrieve(response.id)
    assert (done.output_text, done.id, done.usage.output_tokens) == ("w1 w2 w3", response.id, 3)
    following = ask.responses.create(model="one", input="x", previous_response_id=response.id, background=True)
    wait_until(lambda: ask.responses.retrieve(following.id).status == "completed")
    assert ask.responses.cancel(following.id).status == "completed"


def test_cancelled(ask: openai.OpenAI) -> None:
    response = ask.responses.create(model="one", input="!tokens 500 !sleep 0.05", background=True)
    wait_until(lambda: ask.responses.retrieve(response.id).status == "in_progress")
    cancelled = ask.responses.cancel(response.id)
    assert cancelled.status == "cancelled" and ask.responses.retrieve(response.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        ask.responses.cancel(ask.responses.create(model="one", input="x").id)


def test_a_stream_of_the_background_is_taken_up_again(ask: openai.OpenAI) -> None:
    events = []
    for event in ask.responses.create(model="one", input="!tokens 12 !sleep 0.05", background=True, stream=True):
        events.append(event)
        if event.type == "response.output_text.delta":
            break
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    rest = list(ask.responses.retrieve(events[0].response.id, stream=True, starting_after=events[-1].sequence_number))
    whole = [*events, *rest]
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert whole[-1].type == "response.completed"
    text = "".join(event.delta for event in whole if event.type == "response.output_text.delta")
    assert text == whole[-1].response.output_text == " ".join(f"w{n}" for n in range(1, 13))


def test_the_background_ends_with_the_server(start: Any) -> None:
    server = start(DRAIN_TIMEOUT="1")
    with client(server) as ask:
        for event in ask.responses.create(model="one", input="!tokens 900 !sleep 0.1", background=True, stream=True):
            if event.type == "response.created":
                response = event.response
            if event.type == "response.output_text.delta":
                break
    server.stop()
    with client(start()) as ask:
        kept = ask.responses.retrieve(response.id)
        assert kept.status == "failed" and kept.error.message       # whoever was the first to notice
        assert kept.output_text.startswith("w1")
        last = list(ask.responses.retrieve(response.id, stream=True))[-1]
        assert last.type == "response.failed" and last.response.error == kept.error
        ask.responses.delete(response.id)


# ---------------------------------------------------------------- mistakes

@pytest.mark.parametrize(("body", "param"), [
    ({"input": 5}, "input"), ({"input": []}, "input"), ({"input": [5]}, "input.0"), ({}, "input"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input.0.type"),
    ({"input": [{"role": "owner", "content": "x"}]}, "input.0.role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
     "input.0.content.0.type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]}, "input.0.content.0.text"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]}, "input.0.arguments"),
    ({"input": "x", "tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"input": "x", "tools": [{"type": "function"}]}, "tools.0.name"),
    ({"input": "x", "tools": "weather"}, "tools"), ({"input": "x", "tool_choice": "maybe"}, "tool_choice"),
    ({"input": "x", "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    ({"input": "x", "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
    ({"input": "x", "temperature": 3}, "temperature"), ({"input": "x", "temperature": "hot"}, "temperature"),
    ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"), ({"input": "x", "top_logprobs": 21}, "top_logprobs"),
    ({"input": "x", "include": ["all"]}, "include.0"), ({"input": "x", "metadata": {"a": 5}}, "metadata.a"),
    ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"input": "x", "conversation": "conv_1"}, "conversation"), ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
    ({"input": "x", "max_tokens": 5}, "max_tokens"), ({"input": "x", "truncation": "none"}, "truncation"),
    ({"input": "x", "tools": [WEATHER], "text": {"format": {"type": "json_object"}}}, "tools"),
    ({"input": "x", "background": True, "store": False}, "background"),
    ({"input": "x", "previous_response_id": "resp_none"}, "previous_response_id"),
    ({"input": "x", "metadata": {"session_id": "a b"}}, "session_id")])
def test_mistakes(ask: openai.OpenAI, body: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask.post("/responses", body={"model": "one", **body}, cast_to=object)
    assert caught.value.param == param and caught.value.type == "invalid_request_error"
    assert len(str(caught.value)) < 1000


def test_what_is_not_there(ask: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask.responses.create(model="none", input="x")
    assert caught.value.code == "model_not_found" and "one" in caught.value.message
    for response in ("resp_1", "resp_" + "0" * 32, "x", "resp_" + "0" * 32 + "_con"):
        with pytest.raises(openai.NotFoundError):
            ask.responses.retrieve(response)
    response = ask.responses.create(model="one", input="x")
    for query in ({"limit": 0}, {"limit": "x"}, {"order": "up"}, {"after": "msg_none"}):
        with pytest.raises(openai.BadRequestError) as wrong:
            ask.responses.input_items.list(response.id, extra_query=query)
        assert wrong.value.param == next(iter(query))


# ---------------------------------------------------------------- a real model

@pytest.mark.model
@pytest.mark.skipif(not STARTER.exists(), reason="models/starter.gguf is not there")
def test_with_a_real_model(tmp_path: Path) -> None:
    config = {"SelectedModel": "starter", "starter": {"model": "starter.gguf", "n_ctx": 1024, "max_tokens": 64}}
    server = Server(make_home(tmp_path / "home", config), runner="llama").start()
    try:
        with client(server) as ask:
            first = ask.responses.create(model="starter", input="My name is Ada.", temperature=0)
            second = ask.responses.create(model="starter", input="What is my name?", temperature=0,
                                          previous_response_id=first.id)
            assert "Ada" in second.output_text
            assert second.usage.input_tokens_details.cached_tokens > 0
            parsed = ask.responses.parse(model="starter", input="Describe Bern.", text_format=City)
            assert isinstance(parsed.output_parsed, City)
            call, = ask.responses.create(model="starter", input="Weather in Bern?", tools=[WEATHER],
                                         tool_choice="required", max_output_tokens=40).output
            assert set(json.loads(call.arguments)) == {"city"}
    finally:
        server.end()
