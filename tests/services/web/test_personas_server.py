"""csps-llm's routes of a started server, by `requests`; with the starter model where it is there."""

from __future__ import annotations

import json

import pytest
import requests

from tests.conftest import MASTER, STARTER, Server, make_home
from tests.tiny_wheel import write_bert

CONFIG = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 1024, "max_tokens": 128},
          "vectors": {"model": "bert.gguf", "embedding": True, "n_ctx": 60, "query_prefix": "find: "}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("personas") / "home", CONFIG)
    write_bert(home / "models" / "bert.gguf")
    started = Server(home).start()
    yield started.ready()
    started.end()


def test_fresh_server_has_personalities(server):
    names = [one["name"] for one in server.call("GET", "/personalities").json()["personalities"]]
    assert names == ["assistant", "assistant-fr", "summariser", "extractor", "editor", "translator"]
    assert json.loads((server.data / "personalities.d" / "10-parley.json").read_text()).keys() == {*names}
    for name in names:
        assert server.call("GET", f"/gpt/{name}", params={"prompt": "hi"}).text == "You said: hi"


def test_personality_is_added_while_it_serves(server):
    path = server.data / "personalities.d" / "20-mine.json"
    path.write_text('{"whisper": {"imperative": "You are Whisper."}}')
    assert server.call("POST", "/gpt/whisper", data={"prompt": "hi"}).text == "You said: hi"
    path.write_text('{"whisper": {"imperative": 5}}')
    assert server.call("GET", "/gpt/whisper?prompt=hi").status_code == 200
    assert "20-mine.json, line 1" in server.call("GET", "/readyz").json()["warnings"][0]
    path.unlink()
    assert server.call("GET", "/gpt/whisper?prompt=hi").status_code == 404


def test_task_without_a_schema_is_json(server):
    response = server.call("POST", "/toil/extractor", json={"prompt": '!echo {"a": [1, 2.50]}'})
    assert response.text == '{"a": [1, 2.50]}' and response.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("kind", "same"), [("document", "red sky"), ("query", "find: red sky")])
def test_vectors_are_those_of_the_text_with_what_its_model_wants(server, method, kind, same):
    vector = server.call(method, f"/embedding/{kind}", params={"text": "red sky"}).json()
    body = {"model": "vectors", "input": same}
    assert vector == server.call("POST", "/v1/embeddings", json=body).json()["data"][0]["embedding"]


def test_vectors_of_a_form_and_of_nothing(server):
    assert server.call("POST", "/embedding/query", data={"text": "red"}).status_code == 200
    assert server.call("GET", "/embedding/query").json()["error"]["code"] == "missing_field"
    assert requests.get(f"{server.url}/embedding/query?text=x", timeout=30).status_code == 401
    assert server.call("GET", f"/embedding/query?text=x&key={MASTER}").status_code == 400


@pytest.mark.model
@pytest.mark.skipif(not STARTER.exists(), reason="the starter model is not there")
def test_starter_model_answers_and_writes_json(tmp_path):
    home = make_home(tmp_path / "home")
    (home / "data" / "config.json").unlink()        # as on a fresh machine
    server = Server(home, "llama").start()
    try:
        server.ready()
        assert server.call("GET", "/gpt/assistant", params={"prompt": "Hello!"}).text
        any_json = server.call("POST", "/toil/extractor", json={"prompt": "Name two capitals."})
        assert any_json.status_code == 200 and any_json.json() is not ...
        schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
                  "additionalProperties": False}
        held = server.call("POST", "/toil/extractor", json={
            "prompt": "which city is it?", "text": "Paris is the capital of France.", "schema": schema}).json()
        assert [*held] == ["city"] and isinstance(held["city"], str)
    finally:
        server.end()
