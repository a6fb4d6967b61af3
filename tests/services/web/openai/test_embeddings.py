"""`POST /v1/embeddings`, by the official client, on a started server; and every way to ask it wrongly."""

from __future__ import annotations

import base64
import json
import math
import struct

import openai
import pytest

from services.web import replies
from tests.conftest import MASTER
from tests.services.web.vectors import CONFIG, vector_server
from tests.tiny_wheel import WIDTH, write_bert, write_reranker

DIMENSIONS = {"llama": WIDTH, "fake": 32}


only_llama = pytest.mark.parametrize("server", ["llama"], indirect=True)


@pytest.fixture(scope="module", params=["fake", "llama"])
def server(tmp_path_factory, request):
    yield from vector_server(tmp_path_factory, request.param)


def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=MASTER, max_retries=0)


def test_the_official_client_gets_its_vectors(server):
    with client(server) as ask:
        texts = ["the cat", "a dog is barking", "the cat"]
        found = ask.embeddings.create(model="vectors", input=texts)                 # asks for base64 by itself
        plain = ask.embeddings.create(model="bert.gguf", input=texts, encoding_format="float")
        alone = ask.embeddings.create(model="vectors", input=texts[1], dimensions=DIMENSIONS[server.runner])
        with pytest.raises(openai.NotFoundError) as unknown:
            ask.embeddings.create(model="text-embedding-3-small", input="x")
        with pytest.raises(openai.UnprocessableEntityError):
            ask.embeddings.create(model="one", input="x")
    assert unknown.value.code == "model_not_found" and "vectors" in unknown.value.message
    assert (found.object, found.model, [item.index for item in found.data]) == ("list", "bert.gguf", [0, 1, 2])
    vectors = [item.embedding for item in found.data]
    assert [len(vector) for vector in vectors] == [DIMENSIONS[server.runner]] * 3
    assert all(abs(math.hypot(*vector) - 1) < 1e-5 for vector in vectors)
    assert vectors == [item.embedding for item in plain.data] and vectors[0] == vectors[2] != vectors[1]
    assert max(abs(a - b) for a, b in zip(vectors[1], alone.data[0].embedding, strict=True)) < 1e-3
    assert found.usage.prompt_tokens == found.usage.total_tokens > 5


def test_what_is_wrong_is_told_in_the_one_envelope(server):
    def ask(**body):
        response = server.call("POST", "/v1/embeddings", json=body)
        assert response.json()["message"] == response.json()["error"]["message"]
        return response.status_code, response.json()["error"]

    for body, param, told in [
            ({}, "input", "required"), ({"input": ""}, "input", "blank"), ({"input": ["a", " "]}, "input.1", "blank"),
            ({"input": []}, "input", "at least 1"), ({"input": [1, -2]}, "input.1", "0"),
            ({"input": [[1], []]}, "input.1", "at least 1"), ({"input": [[1], ["a"]]}, "input.1.0", "integer"),
            ({"input": [1, 999999]}, "input", "no token"), ({"input": ["a"] * 2049}, "input", "at most 2048"),
            ({"input": [[1], [2, 999999]]}, "input.1", "no token"),
            ({"input": "a", "dimensions": 7777}, "dimensions", "ask for fewer"),
            ({"input": "a", "n": 1}, "n", "Unrecognized request argument supplied: n"),
            ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'")]:
        status, error = ask(**body)
        assert (status, error["param"]) == (400, param) and told in error["message"], error
    status, error = ask(input=["fine", "the cat " * 40])
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "input.1")
    assert error["limit"] == 60 < error["prompt_tokens"]


def test_an_embedding_profile_answers_no_question_and_a_chat_model_embeds_nothing(server):
    reply = server.call("POST", "/answer", json={"prompt": "hello", "profile": "vectors"})
    assert reply.status_code == 422 and "'vectors' makes embeddings" in reply.json()["message"]
    reply = server.call("POST", "/models/model", json={"model": "bert.gguf", "model_config": "vectors"})
    assert reply.status_code == 422 and "one" in reply.json()["message"]
    reply = server.call("GET", "/models").json()
    assert reply["selected"] == "one" and reply["profiles"]["vectors"]["embedding"] is True
    if server.runner == "llama":          # the fake runner looks at no file
        reply = server.call("POST", "/models/model", json={"model": "bert.gguf", "model_config": "one"})
        assert reply.status_code == 422 and '"embedding": true' in reply.json()["message"]
        wrong = {**CONFIG, "wrong": {"model": "other.gguf", "embedding": True}}
        (server.data / "config.json").write_text(json.dumps(wrong))
        reply = server.call("POST", "/v1/embeddings", json={"input": "x", "model": "wrong"})
        assert reply.status_code == 422 and "not for embeddings" in reply.json()["message"]


def test_tokens_are_taken_for_their_text(server):
    texts = ["hello cat", "a dog"]
    tokens = [server.call("POST", "/tokenize", json={"content": text, "model": "vectors"}).json()["tokens"]
              for text in texts]
    wanted = server.call("POST", "/v1/embeddings", json={"input": texts}).json()["data"]
    assert server.call("POST", "/v1/embeddings", json={"input": tokens}).json()["data"] == wanted
    alone = server.call("POST", "/embeddings", json={"input": tokens[1]}).json()["data"]
    assert len(alone) == 1
    assert max(abs(a - b) for a, b in zip(alone[0]["embedding"], wanted[1]["embedding"], strict=True)) < 1e-3


@only_llama
@pytest.mark.parametrize("text", ["the cat", "barking, x!", "Cat xyz"])
def test_tokens_with_those_around_a_text_and_without_give_exactly_its_vector(server, text):
    def vector(given):
        return server.call("POST", "/v1/embeddings", json={"input": given}).json()["data"][0]["embedding"]
    wanted = vector(text)
    for around in (False, True):
        body = {"content": text, "model": "vectors", "add_special": around}
        tokens = server.call("POST", "/tokenize", json=body).json()["tokens"]
        assert tokens and vector(tokens) == vector([tokens]) == wanted


@only_llama
def test_files_without_profiles_are_served(server):
    write_bert(server.home / "models" / "free.gguf")
    write_reranker(server.home / "models" / "ranks.gguf")
    listed = {entry["id"]: entry["embedding"] for entry in server.call("GET", "/v1/models").json()["data"]}
    assert listed["free.gguf"] is True and listed["ranks.gguf"] is True and listed["one"] is False
    body = {"input": "the cat", "model": "free.gguf"}
    assert len(server.call("POST", "/v1/embeddings", json=body).json()["data"][0]["embedding"]) == WIDTH
    body = {"query": "the cat", "documents": ["a dog", "the cat"], "model": "ranks.gguf"}
    assert len(server.call("POST", "/v1/rerank", json=body).json()["results"]) == 2
    for model in ("free.gguf", "ranks.gguf"):
        assert server.call("POST", "/tokenize", json={"content": "the cat", "model": model}).json()["tokens"]
        body = {"messages": [{"role": "user", "content": "x"}], "model": model}
        assert server.call("POST", "/v1/chat/completions", json=body).status_code == 422


def test_fewer_dimensions_are_the_first_ones_of_length_1(server):
    whole, short = (server.call("POST", "/v1/embeddings", json={"input": "hello cat", **more}).json()["data"][0]
                    for more in ({}, {"dimensions": 3}))
    first = whole["embedding"][:3]
    length = math.hypot(*first) or 1.0
    assert short["embedding"] == pytest.approx([number / length for number in first], abs=1e-6)


def test_base64_holds_the_same_numbers_and_usage_is_charged(server):
    key = server.make_key()
    ask = {"input": ["hello cat"], "user": "somebody"}
    floats = server.call("POST", "/v1/embeddings", key, json=ask).json()
    coded = server.call("POST", "/v1/embeddings", key, json={**ask, "encoding_format": "base64"}).json()
    data = base64.b64decode(coded["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == floats["data"][0]["embedding"]
    for reply in (floats, coded):
        replies.Embeddings.model_validate(reply)
    used = server.call("GET", "/auth", key).json()["usage"]
    assert used["prompt_tokens"] == 2 * floats["usage"]["prompt_tokens"] and used["completion_tokens"] == 0
    assert server.call("POST", "/v1/embeddings", server.make_key(scopes=["models:read"]), json=ask).status_code == 403
    assert server.call("POST", "/v1/embeddings", "wrong", json=ask).status_code == 401
