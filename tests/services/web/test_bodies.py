"""Fields of request bodies: types, ranges, unknown names (rows B4, B8, U1, U5 to U7, I1)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import BadRequest
from services.web.bodies import AnswerBody, KeyBody, validate

NEVER = [True, False, "1", [], {}, [1]]
WRONG = {
    "prompt": [1, 1.0, True, [], {}, ["x"], "", " \n\t"],
    "session_id": [True, 1.0, [], {}, "a/b", "", "..", "../x", "a b", "１", "x" * 300, 10 ** 35],
    "profile": [1, True, [], "", " "],
    "stream": [1, 0, "true", [], {}],
    "temperature": [*NEVER, -1, -0.01, 2.01, 1e9], "top_p": [*NEVER, 0, -1, 1.01, 2], "min_p": [*NEVER, -0.1, 1.1],
    "top_k": [*NEVER, -1, 1.0, 1.5, 2 ** 31], "repeat_penalty": [*NEVER, 0, -1, 2.1],
    "max_tokens": [*NEVER, 0, -1, 1.0, 2 ** 20 + 1, 2 ** 31], "seed": [*NEVER, -1, 1.0, 2 ** 32, 2 ** 64],
    "stop": [1, True, {}, "", [""], ["x"] * 17, ["x"] * 10_000, "x" * 201, ["x" * 201], "x" * 1_000_000, [1], [["x"]]],
    "schema": [1, True, [], "{}"],
}
RIGHT = {
    "session_id": [1, 0, -1, 2 ** 53 + 1, "1", "name", "a-b_C9", None], "profile": ["one", None],
    "stream": [True, False, None], "temperature": [0, 1, 0.5, 2, None], "top_p": [0.01, 1, None], "top_k": [0, 40],
    "min_p": [0, 1], "repeat_penalty": [0.1, 1, 2], "max_tokens": [1, 2 ** 20], "seed": [0, 2 ** 32 - 1],
    "stop": ["x", ["x"] * 16, "x" * 200, [], None], "schema": [{}, {"type": "object"}, None],
}
UNKNOWN = ["max_token", "Prompt", "prompt ", "n", "n_discard", "model", "schema_", "model_config", "__class__",
           "sessionId"]


@pytest.mark.parametrize("field, value", [(field, value) for field, values in WRONG.items() for value in values],
                         ids=lambda value: repr(value)[:30])
def test_wrong_values_are_400_and_name_the_field(scripted, field, value):
    response = scripted.call("POST", "/answer", json={"prompt": "x", field: value})
    assert response.status_code == 400, response.text
    assert response.json["error"]["param"].split(".")[0] == field
    assert scripted.parts.chat.asked == [], "nothing reaches the pipeline unchecked"


@pytest.mark.parametrize("field, value", [(field, value) for field, values in RIGHT.items() for value in values],
                         ids=lambda value: repr(value)[:30])
def test_right_values_are_taken(scripted, field, value):
    response = scripted.call("POST", "/answer", json={"prompt": "x", field: value})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_fields_are_refused_by_name(scripted, name):
    response = scripted.call("POST", "/answer", json={"prompt": "x", name: 1})
    assert (response.status_code, response.json["error"]["code"]) == (400, "unknown_field")
    assert response.json["error"]["param"] == name and "max_tokens" in response.json["message"]


@pytest.mark.parametrize("body", [{}, {"prompt": None}, {"prompt": ""}, {"prompt": "  "}, {"stream": True}])
def test_the_seed_s_words_for_a_missing_question(scripted, body):
    response = scripted.call("POST", "/answer", json=body)
    assert response.status_code == 400
    assert response.json["message"] == "Question not provided in the request"


@pytest.mark.parametrize("body, words", [
    ({"model_config": "one"}, "No model name provided"),
    ({"model": "", "model_config": "one"}, "No model name provided"),
    ({"model": "one.gguf"}, "No model config name provided"), ({}, "No model name provided"),
    ({"model": "one.gguf", "model_config": None}, "No model config name provided")])
def test_the_seed_s_words_for_a_missing_model(world, body, words):
    response = world.call("POST", "/models/model", json=body)
    assert (response.status_code, response.json["message"]) == (400, words)


@pytest.mark.parametrize("size, status", [(1000, 200), (1001, 413)])
def test_the_prompt_s_length_in_bytes(tmp_path, size, status):
    from tests.services.web.conftest import make_world
    world = make_world(tmp_path, max_prompt_bytes=1000)
    response = world.call("POST", "/answer", json={"prompt": "é" * (size // 2) + "x" * (size % 2)})
    assert response.status_code == status, response.text


@pytest.mark.parametrize("path, body", [
    ("/answer", {"prompt": "\ud800"}), ("/answer", {"prompt": "x", "session_id": "\udfff"}),
    ("/answer", {"prompt": "x", "schema": {"a": ["\ud800"]}}), ("/answer", {"prompt": "x", "stop": ["\ud800"]}),
    ("/auth/key", {"name": "\ud800"}), ("/models/model", {"model": "\ud800", "model_config": "one"}),
    ("/knowledge", {"name": "\ud800"}), ("/knowledge/facts/documents", {"text": "x", "title": "\ud800"}),
    ("/knowledge/facts/documents", {"crawl": {"url": "http://a.example/\ud800"}}),
    ("/knowledge/facts/search", {"query": "\udfff"}), ("/toil/extractor", {"prompt": "x", "text": "\ud800"}),
    ("/gpt/assistant", {"prompt": "\ud800"}),
])
def test_half_a_character_is_bad_unicode_everywhere(world, path, body):
    before = {file: file.read_bytes() for file in world.settings.data_dir.rglob("*.json")}
    response = world.call("POST", path, data=json.dumps(body), content_type="application/json")
    assert (response.status_code, response.json["error"]["code"]) == (400, "bad_unicode")
    assert {file: file.read_bytes() for file in world.settings.data_dir.rglob("*.json")} == before


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(TEXT)
def test_any_other_text_is_taken_as_it_is(text):
    if text.strip() and not text.isspace():
        try:
            assert validate(AnswerBody, {"prompt": text}).prompt == text
        except BadRequest as error:
            assert error.code == "missing_field" and not any(c.isalnum() for c in text)


def test_nested_fields_are_named_by_path():
    with pytest.raises(BadRequest) as caught:
        validate(KeyBody, {"token_budget": {"tokens": 0, "per": "day"}})
    assert caught.value.param == "token_budget.tokens"
    with pytest.raises(BadRequest) as caught:
        validate(AnswerBody, {"prompt": "x", "stop": ["a", 1]})
    assert caught.value.param.startswith("stop")
