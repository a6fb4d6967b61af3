"""`POST /v1/rerank` on a started server, with a real reranker and a scripted one; and every way to ask it wrongly."""

from __future__ import annotations

import pytest

from services.web import replies
from tests.services.web.vectors import vector_server

ASK = {"query": "the cat", "documents": ["a dog", "the cat", {"text": "the dog"}]}


@pytest.fixture(scope="module", params=["fake", "llama"])
def server(tmp_path_factory, request):
    yield from vector_server(tmp_path_factory, request.param)


def test_the_best_comes_first(server):
    key = server.make_key()
    found = server.call("POST", "/v1/rerank", key, json={**ASK, "model": "ranker"}).json()
    replies.Reranked.model_validate(found)
    assert found["object"] == "list" and found["model"] == "tiny-reranker.gguf"
    scores = [result["relevance_score"] for result in found["results"]]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3
    assert sorted(result["index"] for result in found["results"]) == [0, 1, 2]
    if server.runner == "fake":
        assert [tuple(result.values()) for result in found["results"]] == [(1, 1), (2, 0.5), (0, 0)]
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 5
    assert server.call("GET", "/auth", key).json()["usage"]["prompt_tokens"] == found["usage"]["total_tokens"]

    two = server.call("POST", "/rerank", json={**ASK, "top_n": 2, "return_documents": True}).json()
    texts = ["a dog", "the cat", "the dog"]
    assert [result["index"] for result in two["results"]] == [result["index"] for result in found["results"]][:2]
    assert all(result["document"] == {"text": texts[result["index"]]} for result in two["results"])


def test_many_texts_go_in_portions(server):
    texts = ["the cat", "x"] * 300
    found = server.call("POST", "/v1/rerank", json={"query": "the cat", "documents": texts}).json()
    by_index = {result["index"]: result["relevance_score"] for result in found["results"]}
    assert len(by_index) == 600
    assert all(abs(by_index[index] - by_index[index % 2]) < 0.05 for index in by_index)


def test_what_is_wrong_is_told(server):
    def ask(**body):
        response = server.call("POST", "/v1/rerank", json={**ASK, **body})
        return response.status_code, response.json()["error"]

    for body, param, told in [
            ({"query": None}, "query", "query"), ({"query": " "}, "query", "blank"),
            ({"documents": []}, "documents", "at least 1"), ({"documents": ["a", ""]}, "documents.1", "blank"),
            ({"documents": [{}]}, "documents.0.text", "required"), ({"documents": [3]}, "documents.0", ""),
            ({"top_n": 0}, "top_n", "greater than or equal to 1"), ({"x": 1}, "x", "unknown")]:
        status, error = ask(**body)
        assert (status, error["param"]) == (400, param) and told in error["message"], error
    status, error = ask(documents=["fine", "the cat " * 40])
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "documents.1")
    for model, status, told in [("one", 422, "writes text and does not rank"), ("nothing", 404, "no profile for rank"),
                                ("vectors", 422, "makes embeddings and does not rank"),
                                ("bert.gguf", 422, "does not rank")]:
        found, error = ask(model=model)
        assert (found, error["param"]) == (status, "model") and told in error["message"]
        assert "there are: ranker" in error["message"]


def test_a_model_that_ranks_makes_no_embeddings(server):
    found = server.call("POST", "/v1/embeddings", json={"input": "x"}).json()
    assert found["model"] == "bert.gguf", "the first profile that makes some"
    response = server.call("POST", "/v1/embeddings", json={"input": "x", "model": "ranker"})
    assert response.status_code == 422 and "ranks texts and makes no embeddings" in response.json()["message"]
    response = server.call("POST", "/answer", json={"prompt": "x", "profile": "ranker"})
    assert response.status_code == 422
