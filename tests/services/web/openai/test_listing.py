"""`GET /v1/models`: what may be asked for, and by whom."""

from __future__ import annotations

import pytest

from services.web import replies
from services.web.openai import shapes


def ids(reply):
    return [entry["id"] for entry in reply.json["data"]]


def test_profiles_come_first_then_files_of_none(world):
    reply = world.call("GET", "/v1/models")
    shapes.ModelList.model_validate(reply.json)
    assert ids(reply) == ["one", "two", "three.gguf"]
    one, _, free = reply.json["data"]
    assert one == {"id": "one", "object": "model", "owned_by": "parley", "file": "one.gguf", "loaded": True,
                   "embedding": False, "n_ctx": 512, "created": one["created"]}
    written = (world.settings.models_dir / "one.gguf").stat().st_mtime
    assert one["created"] == int(written)
    assert (free["loaded"], free["embedding"], free["n_ctx"]) == (False, False, 2048)


def test_the_seeds_own_list_has_them_too(world):
    reply = world.call("GET", "/models")
    replies.Models.model_validate(reply.json)
    assert reply.json["object"] == "list" and reply.json["data"] == world.call("GET", "/v1/models").json["data"]


def test_the_selected_profile_is_the_first(world):
    world.parts.profiles.select("two")
    assert ids(world.call("GET", "/v1/models"))[0] == "two"


def test_a_key_sees_only_what_it_may_use(world):
    key = world.make_key(profiles=["two"])
    assert ids(world.call("GET", "/v1/models", key=key)) == ["two"]
    assert world.call("GET", "/v1/models/one", key=key).status_code == 404
    assert world.call("GET", "/v1/models", key=world.make_key(scopes=["keys"])).status_code == 403


def test_a_profile_without_its_file_cannot_be_asked_for(world):
    (world.settings.models_dir / "two.gguf").unlink()
    assert ids(world.call("GET", "/v1/models")) == ["one", "three.gguf"]


@pytest.mark.parametrize("path", ["/v1/models/two", "/models/two", "/v1/models/two.gguf"])
def test_one_of_them(world, path):
    reply = world.call("GET", path)
    shapes.Model.model_validate(reply.json)
    assert reply.json["id"] == "two"


def test_none_of_them(world):
    for name in ("gpt-4o", "a/b"):
        reply = world.call("GET", f"/v1/models/{name}")
        assert (reply.status_code, reply.json["error"]["code"]) == (404, "model_not_found")
        assert name in reply.json["message"] and "one, two, three.gguf" in reply.json["message"]


@pytest.mark.parametrize("path, body", [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}), ("/v1/completions", {"prompt": "x"}),
    ("/v1/responses", {"input": "x"}), ("/tokenize", {"content": "x"}),
    ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": "x"}]})])
def test_a_key_learns_no_names_of_models_that_it_may_not_use(world, path, body):
    response = world.call("POST", path, key=world.make_key(profiles=["one"]), json={**body, "model": "none"})
    assert response.status_code == 404 and response.json["message"].endswith("; there are: one")
