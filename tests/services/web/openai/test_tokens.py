"""`POST /tokenize` and `/detokenize`, as llama.cpp's server has them."""

from __future__ import annotations

import pytest

from services.web.openai import shapes

HEI = [0x48, 0xc3, 0xa9]        # "Hé", one token a byte


def test_there_and_back(world):
    reply = world.call("POST", "/tokenize", json={"content": "Hé"})
    shapes.Tokens.model_validate(reply.json)
    assert reply.json == {"tokens": HEI}
    assert world.call("POST", "/detokenize", json=reply.json).json == {"content": "Hé"}
    assert world.call("POST", "/detokenize", json={"tokens": []}).json == {"content": ""}


def test_pieces_that_are_no_text_are_bytes(world):
    reply = world.call("POST", "/tokenize", json={"content": "Hé", "with_pieces": True, "add_special": False})
    shapes.Tokens.model_validate(reply.json)
    assert reply.json == {"tokens": [{"id": 0x48, "piece": "H"}, {"id": 0xc3, "piece": [0xc3]},
                                     {"id": 0xa9, "piece": [0xa9]}]}


def test_by_a_model(world):
    assert world.call("POST", "/tokenize", json={"content": "a", "model": "two"}).status_code == 200
    assert world.parts.engine.loaded[-1].model.endswith("two.gguf")
    assert world.call("POST", "/tokenize", json={"content": "a", "model": "no"}).json["error"]["code"] == \
        "model_not_found"
    key = world.make_key(profiles=["two"])
    assert world.call("POST", "/detokenize", key=key, json={"tokens": [65]}).status_code == 403
    assert world.call("POST", "/detokenize", key=key, json={"tokens": [65], "model": "two"}).json == {"content": "A"}


@pytest.mark.parametrize("path, body, param", [
    ("/tokenize", {}, "content"), ("/tokenize", {"content": 3}, "content"),
    ("/tokenize", {"content": "a", "x": 1}, "x"), ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": ["a"]}, "tokens.0"),
    ("/detokenize", {"tokens": [-1]}, "tokens.0"), ("/detokenize", {"tokens": [999]}, "tokens")])
def test_what_is_wrong_is_refused_by_name(world, path, body, param):
    reply = world.call("POST", path, json=body)
    assert (reply.status_code, reply.json["error"]["param"]) == (400, param)
