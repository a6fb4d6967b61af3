"""csps-llm's routes: who answers, how a question comes in, what goes out."""

from __future__ import annotations

import json

import pytest

from services import wire
from services.chat.events import Delta
from tests.services.web.conftest import final


@pytest.fixture
def folder(world):
    return world.settings.data_dir / "personalities.d"


def write(folder, value, name="20.json"):
    (folder / name).write_text(json.dumps(value))


def asked(world, number=-1):
    return "".join(world.parts.engine.requests[number].prompt)


@pytest.mark.parametrize("how", [
    {"method": "GET", "query_string": {"prompt": "why not"}},
    {"method": "POST", "query_string": {"prompt": "why not"}},
    {"method": "POST", "data": {"prompt": "why not"}},
    {"method": "POST", "json": {"prompt": "why not"}}], ids=["address", "posted address", "form", "json"])
def test_question_comes_in_any_way(world, how):
    response = world.call(how.pop("method"), "/gpt/assistant", **how)
    assert (response.status_code, response.mimetype, response.text) == (200, "text/plain", "you said: not")
    assert "You are a helpful assistant." in asked(world) and "Today's date is " in asked(world)


def test_answer_is_json_for_who_asks_for_that(world):
    body = world.call("GET", "/gpt/editor?prompt=x", headers={"Accept": "application/json"}).json
    assert (body["result"], body["profile"], body["finish_reason"]) == ("you said: x", "one", "stop")


def test_summariser_is_not_told_the_time(world):
    world.call("GET", "/gpt/summariser?prompt=x")
    assert "Today's date" not in asked(world)


@pytest.mark.parametrize("session", [{"query_string": {"session": "s1"}}, {"json": {"session": "s1"}},
                                     {"headers": {"X-Session-Id": "s1"}}])
def test_session_goes_on(world, session):
    def ask(prompt):
        how = {name: dict(value) for name, value in session.items()}
        if "json" in how:
            how["json"]["prompt"] = prompt
        else:
            how.setdefault("query_string", {})["prompt"] = prompt
        return world.call("POST", "/gpt/assistant", **how)

    assert ask("first question").status_code == 200
    ask("second question")
    assert "first question" in asked(world) and "you said: question" in asked(world)
    turns = world.call("GET", "/answer/s1").json["turns"]
    assert [turn["content"] for turn in turns][::2] == ["first question", "second question"]


def test_earlier_part_of_a_conversation_stays_as_it_was_sent(world):
    """So that what the runner has computed of it is good for the next question."""
    for prompt in ("one", "two"):
        world.call("GET", f"/gpt/assistant?session=7&prompt={prompt}")
    first, second = asked(world, 0), asked(world, 1)
    said = first[first.index("Today's date"):first.index("one") + 3]
    assert said in second and second.count("Today's date") == 2


def test_system_text_is_a_head_that_all_share(world):
    config = world.settings.data_dir / "config.json"
    config.write_text(json.dumps({"SelectedModel": "one", "one": {
        "model": "one.gguf", "n_ctx": 512, "template": "{system}\n{chat_history}\nHuman: {input}\n"}}))
    world.call("GET", "/gpt/assistant?prompt=x")
    request = world.parts.engine.requests[-1]
    assert "".join(request.prompt)[:request.head].rstrip().endswith("sources.\n\nHuman:")


def test_unknown_personality_names_those_there_are(world):
    for path in ("/gpt/nobody?prompt=x", "/describe/nobody"):
        response = world.call("GET", path)
        assert response.status_code == 404
        assert response.json["error"]["code"] == "personality_not_found" and "translator" in response.json["message"]


def test_personality_of_other_keys(world, folder):
    key = world.make_key()
    write(folder, {"mine": {"keys": [world.call("GET", "/auth", key).json["id"]]}, "theirs": {"keys": ["2"]}})
    assert world.call("GET", "/gpt/mine?prompt=x", key).status_code == 200
    response = world.call("GET", "/gpt/theirs?prompt=x", key)
    assert (response.status_code, response.json["error"]["code"]) == (403, "personality_forbidden")
    names = [one["name"] for one in world.call("GET", "/personalities", key).json["personalities"]]
    assert "mine" in names and "theirs" not in names


def test_key_of_some_profiles_asks_only_those(world, folder):
    key = world.make_key(profiles=["one"])
    write(folder, {"a": {"profile": "one"}, "b": {"profile": "two"}, "c": {"model": "two.gguf"}})
    statuses = [world.call("GET", f"/gpt/{name}?prompt=x", key).status_code for name in "abc"]
    assert statuses == [200, 403, 403]


def test_model_of_a_personality(world, folder):
    write(folder, {"a": {"local_file": "/some/where/two.gguf", "context_window": 2048}})
    body = world.call("GET", "/gpt/a?prompt=x", headers={"Accept": "application/json"}).json
    assert body["profile"] == "two"
    spec = world.parts.engine.loaded[-1]
    assert spec.model.endswith("two.gguf") and spec.n_ctx == 2048


def test_runner_of_a_personality_is_not_the_selected_one(world, folder):
    write(folder, {"a": {"context_window": 2048}})
    before = world.parts.engine.selected
    assert world.call("GET", "/gpt/a?prompt=x").status_code == 200
    assert world.parts.engine.selected == before and world.parts.engine.loaded[-1].n_ctx == 2048


@pytest.mark.parametrize(("path", "how", "status", "code"), [
    ("/gpt/assistant", {}, 400, "missing_field"),
    ("/gpt/assistant?prompt=%20", {}, 400, "invalid_request"),
    ("/gpt/assistant?prompt=x&x=1", {}, 400, "unknown_field"),
    ("/gpt/assistant?prompt=x&prompt=y", {}, 400, "bad_query"),
    ("/gpt/assistant?prompt=%ED%A0%80", {}, 400, "bad_query"),
    ("/gpt/assistant?prompt=x&session=../x", {}, 400, "bad_session_id"),
    ("/gpt/assistant?prompt=x", {"json": {"prompt": "y"}}, 400, "invalid_request"),
    ("/gpt/assistant", {"data": "x=1", "content_type": "application/x-www-form-urlencoded"}, 400, "unknown_field"),
    ("/gpt/assistant", {"data": b"\xff", "content_type": "application/x-www-form-urlencoded"}, 400, "bad_form"),
    ("/gpt/assistant", {"data": "prompt=x", "content_type": "text/plain"}, 415, "unsupported_media_type"),
    ("/gpt/assistant?prompt=x&key=y", {}, 400, "key_in_query")])
def test_wrong_questions_are_refused(world, path, how, status, code):
    response = world.call("POST", path, **how)
    assert (response.status_code, response.json["error"]["code"]) == (status, code), response.text


def test_key_is_needed(world):
    for method, path in [("GET", "/gpt/assistant?prompt=x"), ("POST", "/toil/assistant"), ("GET", "/personalities"),
                         ("GET", "/describe/assistant"), ("GET", "/embedding/query?text=x")]:
        assert world.call(method, path, key=None).status_code == 401
    key = world.make_key(scopes=["models:read"])
    assert world.call("GET", "/gpt/assistant?prompt=x", key).status_code == 403


def test_retry_gets_the_first_answer(world):
    for _ in range(2):
        response = world.call("GET", "/gpt/assistant?prompt=x", headers={"Idempotency-Key": "k"})
        assert response.text == "you said: x"
    assert len(world.parts.engine.requests) == 1
    assert world.call("GET", "/gpt/assistant?prompt=y", headers={"Idempotency-Key": "k"}).status_code == 409


# ---------------------------------------------------------------- /toil

def says(text):
    def script(request):
        yield wire.Piece(id=request.id, text=text)
        yield wire.Done(id=request.id, finish_reason="stop", prompt_tokens=1, completion_tokens=1, cached_tokens=0,
                        processed_tokens=1)
    return script


def test_result_of_a_task_is_as_the_model_wrote_it(world):
    world.parts.engine.script = says('{"b": 1.50, "a": 10000000000000000000001}')
    response = world.call("POST", "/toil/extractor", json={"prompt": "x", "schema": {"type": "object"}})
    assert (response.status_code, response.mimetype) == (200, "application/json")
    assert response.text == '{"b": 1.50, "a": 10000000000000000000001}'
    assert world.parts.engine.requests[-1].schema == {"type": "object"}


def test_task_without_a_schema_is_held_to_json(world):
    world.parts.engine.script = says("[1]")
    assert world.call("POST", "/toil/extractor", json={"prompt": "x"}).json == [1]
    assert world.parts.engine.requests[-1].schema == {}


def test_text_of_a_task_stands_before_it(world):
    world.parts.engine.script = says("1")
    world.call("POST", "/toil/extractor?session=4", json={"prompt": "count the words", "text": "a b"})
    assert "Consider the following text:\na b\nGiven the preceding text, count the words" in asked(world)
    assert world.call("GET", "/answer/4").json["turns"][0]["content"] == "count the words"


@pytest.mark.parametrize("value", ["[" * 3000 + "]" * 3000, "7" * 5000, "-0.5e-400"], ids=["deep", "digits", "small"])
def test_values_that_python_cannot_hold_are_json_all_the_same(world, value):
    world.parts.engine.script = says(value)
    response = world.call("POST", "/toil/extractor", json={"prompt": "x"})
    assert (response.status_code, response.text) == (200, value)


def test_answer_that_is_no_json_is_not_passed_for_it(world):
    world.parts.engine.script = says("nonsense")
    response = world.call("POST", "/toil/extractor", json={"prompt": "x"})
    assert (response.status_code, response.json["error"]["code"]) == (500, "not_json")


@pytest.mark.parametrize("body", [{}, {"prompt": " "}, {"prompt": "x", "schema": []}, {"prompt": "x", "text": ""},
                                  {"prompt": "x", "y": 1}, {"prompt": 1}])
def test_wrong_tasks_are_refused(world, body):
    assert world.call("POST", "/toil/extractor", json=body).status_code == 400


# ---------------------------------------------------------------- the others

def test_personality_is_described(world, folder):
    write(folder, {"a": {"imperative": "secret", "description": "d", "hf_repo": "x/y", "voice": "v"}})
    described = world.call("GET", "/describe/a").json
    assert described["description"] == "d" and described["hf_repo"] == "x/y" and described["voice"] == "v"
    assert not {"imperative", "intro_dialogue", "keys", "gpu_layers", "flash_attention", "ui_style"} & {*described}


def test_personalities_are_listed(world, folder):
    write(folder, {"a": {"profile": "two"}, "b": {"model": "absent.gguf"}})
    found = {one["name"]: one for one in world.call("GET", "/personalities").json["personalities"]}
    assert (found["assistant"]["profile"], found["assistant"]["model"]) == ("one", "one.gguf")
    assert (found["a"]["profile"], found["a"]["model"]) == ("two", "two.gguf")
    assert found["b"]["model"] is None
    assert found["assistant-fr"]["intro_dialogue"].startswith("Bonjour")


def test_wrong_file_is_told_by_readyz(world, folder):
    (folder / "30.json").write_text("{")
    assert "personalities.d/30.json, line 1" in world.call("GET", "/readyz").json["warnings"][0]
    assert world.call("GET", "/gpt/assistant?prompt=x").status_code == 200
    (folder / "30.json").unlink()
    assert world.call("GET", "/readyz").json["warnings"] == []


def test_reasoning_is_no_part_of_the_text(scripted):
    scripted.parts.chat.events = [Delta("\ud800x"), final("\ud800x")]
    assert scripted.call("GET", "/gpt/assistant?prompt=x").text == "\\ud800x"


def test_a_personality_answers_in_a_stream_too(world):
    *pieces, last = world.events(prompt="hello", personality="assistant", session_id="p")
    assert last["done"] and "".join(one.get("delta", "") for one in pieces) == last["result"]
    assert "Today's date is" in asked(world)
    assert world.call("GET", "/answer/p").json["turns"][0]["content"] == "hello"
    both = world.call("POST", "/answer", json={"prompt": "x", "personality": "assistant", "profile": "one"})
    assert (both.status_code, both.json["error"]["param"]) == (400, "profile")
    unknown = world.call("POST", "/answer", json={"prompt": "x", "personality": "nobody"})
    assert (unknown.status_code, unknown.json["error"]["code"]) == (404, "personality_not_found")
