"""The official `openai` package for Python, unchanged but for base URL and key, on a started server."""

from __future__ import annotations

import asyncio
import enum
import json
import threading

import openai
import pytest
from pydantic import BaseModel

from tests.clients.conftest import openai_client
from tests.conftest import MASTER

WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "Tells the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
                   "additionalProperties": False}}}
EVERYTHING = {
    "temperature": 1.3, "top_p": 0.9, "stop": ["\n\n", "###"], "presence_penalty": 0.4, "frequency_penalty": 0.3,
    "logit_bias": {"5": -100, "6": 2}, "logprobs": True, "top_logprobs": 3, "max_completion_tokens": 12, "user": "ann",
    "metadata": {"topic": "tests"}, "store": False, "service_tier": "auto", "reasoning_effort": "low",
    "parallel_tool_calls": True, "modalities": ["text"],
    "extra_body": {"top_k": 30, "min_p": 0.01, "repeat_penalty": 1.1}}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def figures(usage) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


# ---------------------------------------------------------------- answers

def test_a_conversation(client):
    answer = client.chat.completions.create(model="chat", messages=[
        {"role": "system", "content": "Be kind."}, *user("My name is Ada."),
        {"role": "assistant", "content": "Hello Ada."}, *user("What is my name?")])
    assert answer.choices[0].message.content == "Your name is Ada." and answer.choices[0].finish_reason == "stop"
    assert answer.model == "chat" and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4


def test_a_stream(client):
    with client.chat.completions.create(model="chat", messages=user("hello there"), stream=True, n=2,
                                        stream_options={"include_usage": True}) as stream:
        *chunks, last = stream
    for index in (0, 1):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert mine[0].delta.role == "assistant" and mine[-1].finish_reason == "stop"
        assert "".join(choice.delta.content or "" for choice in mine) == "You said: hello there"
    assert last.choices == [] and last.usage.completion_tokens == 8


def test_the_asynchronous_client(fake):
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=fake.url + "/v1", api_key=MASTER) as client:
            stream = await client.chat.completions.create(model="chat", messages=user("hello"), stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert asyncio.run(ask()) == "You said: hello"


def test_a_session_is_the_servers_own(client, fake):
    def ask(text):
        answer = client.chat.completions.create(model="chat", messages=user(text),
                                                extra_headers={"X-Session-Id": "talk"})
        return answer.choices[0].message.content
    ask("My name is Ada.")
    assert ask("What is my name?") == "Your name is Ada."
    turns = fake.call("GET", "/answer/talk").json()["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    again = client.chat.completions.create(model="chat", messages=user("What is my name?"),
                                           metadata={"session_id": "talk"})
    assert again.choices[0].message.content == "Your name is Ada." and again.session_id == "talk"


def test_prompts_without_turns(client):
    answer = client.completions.create(model="chat", prompt=["one two", "three"], echo=True, max_tokens=8, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[3].text.startswith("three")
    with client.completions.create(model="chat", prompt="one two", stream=True, logprobs=2) as stream:
        found = list(stream)
    assert "".join(chunk.choices[0].text for chunk in found) == "You said: one two"
    assert [token for chunk in found if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.tokens]


def test_the_list_of_models(client):
    models = client.models.list().data
    assert [model.id for model in models][:3] == ["chat", "starter", "vectors"]
    assert client.models.retrieve("vectors").embedding is True
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("gpt-4o")
    assert unknown.value.code == "model_not_found"


# ---------------------------------------------------------------- tools

def test_a_round_trip_with_a_tool(client):
    asked = user('!echo Looking. !call weather {"city": "Oslo"}')
    answer = client.chat.completions.create(model="chat", messages=asked, tools=[WEATHER])
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.content == "Looking."
    call, = message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    answer = client.chat.completions.create(
        model="chat", messages=[*asked, message, result, *user("!echo It is sunny.")], tools=[WEATHER])
    assert answer.choices[0].message.content == "It is sunny."
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="chat", messages=[*asked, {**result, "tool_call_id": "no"}])
    assert wrong.value.param == "messages.1.tool_call_id"


def test_streamed_calls_are_those_of_the_plain_answer(client):
    asked = {"model": "chat", "tools": [WEATHER], "messages": user(
        '!echo Both. !call weather {"city": "Oslo"} !call weather {"city": "Rome"}')}
    plain = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        for _ in stream:
            pass
        folded = stream.get_final_completion()
    assert folded.choices[0].finish_reason == plain.choices[0].finish_reason == "tool_calls"
    assert folded.choices[0].message.content == plain.choices[0].message.content
    told = [[(call.function.name, json.loads(call.function.arguments)) for call in answer.choices[0].message.tool_calls]
            for answer in (plain, folded)]
    assert told[0] == told[1] == [("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"})]
    assert figures(folded.usage) == figures(plain.usage)


@pytest.mark.model
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("profile", ["chat", "starter"])
def test_a_model_that_must_call_does_and_the_arguments_parse(real_client, choice, profile):
    answer = real_client.chat.completions.create(
        model=profile, messages=user("Hello"), tools=[WEATHER], tool_choice=choice, seed=3, max_tokens=100,
        parallel_tool_calls=False)
    call, = answer.choices[0].message.tool_calls
    assert call.function.name == "weather" and set(json.loads(call.function.arguments)) == {"city"}


# ---------------------------------------------------------------- models that write

@pytest.mark.model
@pytest.mark.parametrize("more", [
    EVERYTHING, {"temperature": 1.5, "max_tokens": 20}, {"n": 3, "temperature": 1.0, "max_tokens": 8},
    {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 100},
    {"response_format": {"type": "json_object"}, "max_tokens": 24},
    {"extra_body": {"grammar": 'root ::= ("yes" | "no") " "?'}, "max_tokens": 8}],
    ids=["everything", "hot", "several", "tools", "json", "grammar"])
@pytest.mark.parametrize("profile", ["chat", "starter"])
def test_a_stream_says_what_the_plain_answer_says(real_client, profile, more):
    asked = {"model": profile, "messages": user("What is the capital of France?"), "seed": 11, **more}
    plain = real_client.chat.completions.create(**asked)
    with real_client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        *chunks, last = stream
    assert figures(last.usage) == figures(plain.usage) and last.choices == []
    for choice in plain.choices:
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(one.delta.content or "" for one in mine) == (choice.message.content or "")
        assert mine[-1].finish_reason == choice.finish_reason
        assert calls_of(mine) == [(call.function.name, call.function.arguments)
                                  for call in choice.message.tool_calls or []]
        likely = [token for one in mine if one.logprobs for token in one.logprobs.content]
        assert [token.token for token in likely] == [token.token for token in choice.logprobs.content] \
            if choice.logprobs else not likely


def calls_of(choices):
    """(name, arguments) of the calls in the chunks of one answer."""
    found: dict[int, tuple[str, str]] = {}
    for piece in (piece for choice in choices for piece in choice.delta.tool_calls or []):
        name, arguments = found.get(piece.index, ("", ""))
        found[piece.index] = (name + (piece.function.name or ""), arguments + (piece.function.arguments or ""))
    return [found[index] for index in sorted(found)]


@pytest.mark.model
def test_log_probabilities_are_of_the_tokens_that_were_written(real_client):
    answer = real_client.chat.completions.create(model="starter", messages=user("What is the capital of France?"),
                                                 logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    assert "Paris" in choice.message.content
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode().strip() == choice.message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)
    assert all(token.top_logprobs[0].token == token.token for token in tokens), "it is greedy"


@pytest.mark.model
def test_a_biased_token_is_never_or_always_chosen(real_client, real):
    def tokens(text):
        return real.call("POST", "/tokenize", json={"content": text, "model": "starter"}).json()["tokens"]
    asked = {"model": "starter", "messages": user("What is the capital of France?"), "max_tokens": 4}
    begins = real_client.chat.completions.create(**asked).choices[0].message.content
    assert begins.startswith("The capital")
    banned = real_client.chat.completions.create(**asked, logit_bias={str(tokens("The")[0]): -100})
    assert not banned.choices[0].message.content.startswith("The")


@pytest.mark.model
def test_a_prompt_is_scored_by_its_echo(real_client):
    answer = real_client.completions.create(model="starter", prompt="The capital of", echo=True, logprobs=1,
                                            max_tokens=1)
    scored = answer.choices[0].logprobs
    assert scored.tokens[:3] == ["The", " capital", " of"] and scored.token_logprobs[0] is None
    assert scored.text_offset[:3] == [0, 3, 11] and all(number < 0 for number in scored.token_logprobs[1:])
    assert answer.choices[0].text.startswith("The capital of")
    alone = real_client.completions.create(model="starter", prompt="The capital of", echo=True, logprobs=1,
                                           max_tokens=0)
    assert (alone.choices[0].text, alone.usage.completion_tokens) == ("The capital of", 0)
    assert alone.choices[0].logprobs.tokens == ["The", " capital", " of"]
    assert alone.choices[0].logprobs.token_logprobs == pytest.approx(scored.token_logprobs[:3], abs=0.01)
    with pytest.raises(openai.BadRequestError, match="suffix"):
        real_client.completions.create(model="starter", prompt="a", suffix="b")


# ---------------------------------------------------------------- structured output

class Kind(str, enum.Enum):
    city = "city"
    river = "river"


class Place(BaseModel):
    name: str
    kind: Kind
    people: int | None


class Trip(BaseModel):
    places: list[Place]
    by: str


@pytest.mark.model
@pytest.mark.parametrize("shape", [Place, Trip])
@pytest.mark.parametrize("profile", ["chat", "starter"])
def test_a_pydantic_model_comes_back_as_one(real_client, profile, shape):
    answer = real_client.chat.completions.parse(model=profile, messages=user("Hello"), response_format=shape,
                                                max_tokens=100, seed=4, temperature=1.0)
    assert isinstance(answer.choices[0].message.parsed, shape)
    with real_client.chat.completions.stream(model=profile, messages=user("Hello"), response_format=shape,
                                             max_tokens=100, seed=4, temperature=1.0) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed


@pytest.mark.model
def test_a_pydantic_model_as_a_tool(real_client):
    answer = real_client.chat.completions.parse(
        model="starter", messages=user("Hello"), tools=[openai.pydantic_function_tool(Place)], tool_choice="required",
        max_tokens=100, parallel_tool_calls=False)
    call, = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Place)


# ---------------------------------------------------------------- errors

@pytest.mark.parametrize("asked, kind, code", [
    ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found"),
    ({"model": "vectors"}, openai.UnprocessableEntityError, "embedding_profile"),
    ({"temperature": 3}, openai.BadRequestError, "invalid_request"),
    ({"extra_body": {"mirostat": 2}}, openai.BadRequestError, "unknown_parameter"),
    ({"messages": user("word " * 2000)}, openai.BadRequestError, "context_length_exceeded"),
    ({"messages": user("!fail out_of_memory")}, openai.UnprocessableEntityError, "out_of_memory"),
    ({"messages": user("!fail rate_limited")}, openai.RateLimitError, "rate_limited"),
    ({"messages": user("!fail unavailable")}, openai.InternalServerError, "unavailable"),
    ({"messages": user("!close")}, openai.InternalServerError, "runner_crashed")])
def test_errors_are_the_clients_own_exceptions(client, asked, kind, code):
    for stream in (False, True):
        with pytest.raises(kind) as told:
            client.chat.completions.create(**{"model": "chat", "messages": user("x"), **asked}, stream=stream)
        assert told.value.code == code and told.value.request_id


def test_keys_that_may_not(fake):
    with openai_client(fake, api_key="ply_wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    key = fake.make_key(scopes=["models:read"])
    with openai_client(fake, api_key=key) as client, pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(model="chat", messages=user("x"))


def test_an_error_in_the_middle_of_a_stream_is_raised(client):
    with pytest.raises(openai.APIError, match="model's process"), client.chat.completions.create(
            model="chat", messages=user("!tokens 5 !close 3"), stream=True) as stream:
        for _ in stream:
            pass


def test_a_retry_waits_as_long_as_it_is_told(fake, monkeypatch):
    """The first answer holds the key's only place; while the client waits it comes to its end."""
    key, waited = fake.make_key(max_parallel=1), []
    with openai_client(fake, api_key=key, max_retries=2) as client:
        first = client.chat.completions.create(model="chat", messages=user("!tokens 3 !sleep 60"), stream=True)
        assert next(iter(first))

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            first.close()
        monkeypatch.setattr("openai._base_client.time.sleep", sleep)
        for _ in range(600):    # the server has to notice that the first client left
            try:
                answer = client.chat.completions.create(model="chat", messages=user("hello"))
                break
            except openai.RateLimitError as error:
                assert error.response.headers["Retry-After"] == "1"
                threading.Event().wait(0.05)
    assert answer.choices[0].message.content == "You said: hello"
    assert waited and set(waited) == {1.0}
