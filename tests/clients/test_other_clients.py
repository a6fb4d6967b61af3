"""Clients that speak OpenAI's API in their own ways: LangChain, LiteLLM, and the calls of Open WebUI."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import requests
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from openai import NotFoundError
from pydantic import BaseModel

from tests.conftest import MASTER, ROOT


class Place(BaseModel):
    """Somewhere."""

    name: str
    people: int


@tool
def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


# ---------------------------------------------------------------- LangChain

def model(server, **more):
    return ChatOpenAI(**{"model": "chat", "base_url": server.url + "/v1", "api_key": MASTER, "max_retries": 0, **more})


def test_langchain_asks_and_streams(fake):
    chat = model(fake, temperature=0.5, seed=3, top_p=0.9, presence_penalty=0.1, logprobs=True, top_logprobs=2, n=1)
    answer = chat.invoke([("system", "Be kind."), ("human", "hello")])
    assert answer.content == "You said: hello" and answer.response_metadata["model_name"] == "chat"
    assert answer.usage_metadata["output_tokens"] == 3 and answer.response_metadata["logprobs"]["content"]
    chunks = list(model(fake, stream_usage=True).stream("hello"))
    assert "".join(chunk.content for chunk in chunks) == "You said: hello"
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 3
    assert [one.content for one in chat.batch(["a", "b"])] == ["You said: a", "You said: b"]


def test_langchain_calls_tools(fake):
    chat = model(fake).bind_tools([weather])
    asked = HumanMessage('!call weather {"city": "Oslo"}')
    answer = chat.invoke([asked])
    call, = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Oslo"})
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage) and result.content == "sunny in Oslo"
    assert chat.invoke([asked, answer, result, HumanMessage("!echo Sunny.")]).content == "Sunny."


@pytest.mark.model
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_structured_output(real, method):
    chat = model(real, model="starter", max_tokens=120).with_structured_output(Place, method=method)
    assert isinstance(chat.invoke("Hello"), Place)


def test_langchains_prompts_and_vectors(fake):
    writes = OpenAI(model="chat", base_url=fake.url + "/v1", api_key=MASTER, max_tokens=8)
    assert writes.invoke("one two") == "You said: one two"
    vectors = OpenAIEmbeddings(model="vectors", base_url=fake.url + "/v1", api_key=MASTER,
                               check_embedding_ctx_length=False)        # else it wants a tokenizer of OpenAI's models
    assert [len(vector) for vector in vectors.embed_documents(["the cat", "a dog"])] == [32, 32]
    with pytest.raises(NotFoundError):
        model(fake, model="gpt-4o").invoke("hello")


# ---------------------------------------------------------------- LiteLLM

LITELLM = """
import json, litellm
BASE = {"api_base": %(url)r, "api_key": %(key)r, "model": "openai/chat", "num_retries": 0, "max_retries": 0}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}

def ask(text, **more):
    return litellm.completion(**{**BASE, "messages": [{"role": "user", "content": text}], **more})

answer = ask("hello", temperature=0.5, top_p=0.9, seed=3, max_tokens=8, n=2, user="ann")
assert [choice.message.content for choice in answer.choices] == ["You said: hello"] * 2
assert answer.usage.completion_tokens == 6
chunks = list(ask("hello", stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "You said: hello"
asked = '!call weather {"city": "Oslo"}'
message = ask(asked, tools=[WEATHER], tool_choice="auto").choices[0].message
assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Oslo"}
folded = litellm.stream_chunk_builder(list(ask(asked, tools=[WEATHER], stream=True)))
assert json.loads(folded.choices[0].message.tool_calls[0].function.arguments) == {"city": "Oslo"}
told = litellm.completion(**BASE, tools=[WEATHER], messages=[
    {"role": "user", "content": asked}, message.model_dump(),
    {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"},
    {"role": "user", "content": "!echo Sunny."}])
assert told.choices[0].message.content == "Sunny."
found = litellm.embedding(**{**BASE, "model": "openai/vectors"}, input=["the cat"], encoding_format="float")
assert len(found.data[0]["embedding"]) == 32
text = litellm.text_completion(**{**BASE, "model": "text-completion-openai/chat"}, prompt="one two")
assert text.choices[0].text == "You said: one two"
for wrong, kind in [({"model": "openai/gpt-4o"}, litellm.NotFoundError), ({"temperature": 3}, litellm.BadRequestError),
                    ({"api_key": "ply_wrong"}, litellm.AuthenticationError)]:
    try:
        ask("x", **wrong)
        raise SystemExit(f"{wrong} was taken")
    except kind:
        pass
try:
    ask("!fail rate_limited")
    raise SystemExit("no limit")
except litellm.RateLimitError:
    print("all is well")
"""


@pytest.mark.slow
def test_litellm(fake):
    """In a process of its own: it takes seconds to import, and changes what it likes when it is."""
    script = LITELLM % {"url": fake.url + "/v1", "key": MASTER}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI", "LITELLM"))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=150, cwd=ROOT,
                          env={**clean, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"})
    assert "all is well" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]


# ---------------------------------------------------------------- Open WebUI, backend/open_webui/routers/openai.py

WEBUI = {"Authorization": f"Bearer {MASTER}", "Content-Type": "application/json", "X-OpenWebUI-User-Name": "Ann%20B",
         "X-OpenWebUI-User-Id": "1", "X-OpenWebUI-User-Email": "a@example.org", "X-OpenWebUI-User-Role": "admin",
         "X-OpenWebUI-Chat-Id": "c0ffee"}


def test_open_webui_verifies_the_connection_and_lists_models(fake):
    for base in (fake.url + "/v1", fake.url):           # people leave the version out
        listed = requests.get(f"{base}/models", headers=WEBUI, timeout=60).json()
        assert "error" not in listed and [model["id"] for model in listed["data"]][:2] == ["chat", "starter"]
        assert all(model["object"] == "model" and model["owned_by"] for model in listed["data"])


@pytest.mark.parametrize("base", ["/v1", ""])
def test_open_webui_chats(fake, base):
    payload = {"stream": True, "model": "chat", "messages": [
        {"role": "system", "content": "User Context:\n\n"}, {"role": "user", "content": "hello"}],
        "temperature": 0.8, "top_p": 0.9, "max_tokens": 128, "frequency_penalty": 0.1, "presence_penalty": 0.1,
        "seed": 7, "stop": ["<|end|>"], "logit_bias": {"12": -5}, "min_p": 0.05, "reasoning_effort": "medium",
        "stream_options": {"include_usage": True}}
    with requests.post(f"{fake.url}{base}/chat/completions", data=json.dumps(payload), headers=WEBUI, stream=True,
                       timeout=60) as reply:
        assert reply.status_code == 200 and "text/event-stream" in reply.headers["Content-Type"]
        lines = [line.decode() for line in reply.iter_lines() if line]
    *data, end = [line.removeprefix("data: ") for line in lines]
    chunks = [json.loads(line) for line in data]
    assert end == "[DONE]" and chunks[-1]["usage"]["completion_tokens"] == 3
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[:-1]) == "You said: hello"


def test_open_webui_makes_a_title_and_embeds(fake):
    task = {"model": "chat", "stream": False, "max_completion_tokens": 1000, "messages": [
        {"role": "user", "content": '!echo {"title": "Hello"}'}]}
    reply = requests.post(f"{fake.url}/v1/chat/completions", json=task, headers=WEBUI, timeout=60).json()
    assert json.loads(reply["choices"][0]["message"]["content"]) == {"title": "Hello"}
    found = requests.post(f"{fake.url}/v1/embeddings", json={"input": ["the cat", "a dog"], "model": "vectors"},
                          headers=WEBUI, timeout=60).json()
    assert [len(one["embedding"]) for one in found["data"]] == [32, 32]


def test_open_webui_reads_an_error(fake):
    reply = requests.post(f"{fake.url}/v1/chat/completions", headers=WEBUI, timeout=60,
                          json={"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}]})
    assert reply.status_code == 404 and "chat" in reply.json()["error"]["message"]
