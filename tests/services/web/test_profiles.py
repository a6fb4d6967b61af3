"""`/models/profiles` and `/models/try` of a started server: every change, every refusal, and an answer of what is not
saved."""

from __future__ import annotations

import json
import time

import pytest

from tests.conftest import STARTER, Server, make_home

CONFIG = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 512, "max_tokens": 128},
          "two": {"model": "other.gguf", "system": "Be brief.", "seed": 7},
          "words": {"model": "tiny.gguf", "embedding": True}}
THEIRS = "{name: theirs, parameters: {model: other.gguf}}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("profiles") / "home", CONFIG)
    (home / "models" / "theirs.yaml").write_text(THEIRS)
    server = Server(home, WEB_WORKERS="2").start().ready()
    yield server
    server.end()


@pytest.fixture
def server(shared):
    """With config.json as it was."""
    path = shared.data / "config.json"
    path.with_name("new").write_text(json.dumps(CONFIG, indent=2))
    path.with_name("new").replace(path)
    return shared


def told(server):
    return json.loads((server.data / "config.json").read_text())


def put(server, name, fields, **headers):
    return server.call("PUT", f"/models/profiles/{name}", json=fields, headers=headers)


def error(response):
    found = response.json()["error"]
    return response.status_code, found["code"], found["param"]


def test_what_may_be_changed_and_how(server):
    found = server.call("GET", "/models/profiles").json()
    assert found["profiles"] == {**dict.fromkeys(("one", "two", "words"), "data/config.json"),
                                 "theirs": "models/theirs.yaml"}
    assert found["selected"] == "one" and found["defaults"]["top_k"] == 40 and "model" not in found["defaults"]
    assert found["fields"]["top_p"]["maximum"] == 1 and found["fields"]["n_ctx"]["description"]


def test_one_is_shown_whole(server):
    response = server.call("GET", "/models/profiles/two")
    found = response.json()
    assert response.headers["ETag"] == found["etag"] and found["profile"] == CONFIG["two"]
    assert found["effective"]["system"] == "Be brief." and found["effective"]["k"] == 5
    assert (found["selected"], found["source"], found["editable"], found["warnings"]) == \
        (False, "data/config.json", True, [])
    assert server.call("GET", "/models/profiles/theirs").json()["source"] == "models/theirs.yaml"
    assert error(server.call("GET", "/models/profiles/absent")) == (404, "profile_not_found", "profile")


def test_made_used_changed_and_struck_out(server):
    made = put(server, "a%2Fb%20ü", {"model": "tiny.gguf", "max_tokens": 600, "n_ctx": 512}, **{"If-None-Match": "*"})
    assert made.status_code == 201 and made.json()["name"] == "a/b ü" and len(made.json()["warnings"]) == 1
    assert all(server.answer("hi", profile="a/b ü").status_code == 200 for _ in range(4)), "in every worker"
    again = put(server, "a/b%20ü", {"model": "tiny.gguf", "k": 0}, **{"If-Match": made.headers["ETag"]})
    assert again.status_code == 200 and told(server)["a/b ü"] == {"model": "tiny.gguf", "k": 0}
    assert again.headers["ETag"] == server.call("GET", "/models/profiles/a/b ü").headers["ETag"]
    gone = server.call("DELETE", "/models/profiles/a/b ü", headers={"If-Match": again.headers["ETag"]})
    assert gone.status_code == 204 and told(server) == CONFIG
    assert [server.answer("hi", profile="a/b ü").status_code for _ in range(4)] == [404] * 4


@pytest.mark.parametrize("name, fields, wanted", [
    ("new", {"model": "tiny.gguf", "temperature": 3}, (400, "invalid_request", "temperature")),
    ("new", {"model": "tiny.gguf", "max_token": 3}, (400, "invalid_request", "max_token")),
    ("new", {"k": 1}, (400, "invalid_request", "model")), ("new", {"model": "no.gguf"}, (404, "not_found", "model")),
    ("new", {"model": "../config.json"}, (400, "bad_name", "model")),
    ("new", {"model": "tiny.gguf", "stop": [""]}, (400, "invalid_request", "stop")),
    ("SelectedModel", {"model": "tiny.gguf"}, (400, "invalid_request", "name")),
    ("%07", {"model": "tiny.gguf"}, (400, "invalid_request", "name")),
    ("theirs", {"model": "tiny.gguf"}, (409, "not_in_config", "name")),
    ("one", {"model": "tiny.gguf", "embedding": True}, (422, "embedding_profile", "embedding"))])
def test_wrong_ones_are_told_by_the_field(server, name, fields, wanted):
    assert error(put(server, name, fields)) == wanted and told(server) == CONFIG


@pytest.mark.parametrize("name, wanted", [("one", (409, "profile_selected", "name")),
                                          ("theirs", (409, "not_in_config", "name")),
                                          ("absent", (404, "profile_not_found", "profile"))])
def test_what_cannot_be_struck_out(server, name, wanted):
    assert error(server.call("DELETE", f"/models/profiles/{name}")) == wanted and told(server) == CONFIG


def test_nobodys_change_is_undone_unseen(server):
    tag = server.call("GET", "/models/profiles/two").headers["ETag"]
    assert put(server, "two", {"model": "tiny.gguf"}, **{"If-Match": f'"other", {tag}'}).status_code == 200
    for response in (put(server, "two", CONFIG["two"], **{"If-Match": tag}),
                     server.call("DELETE", "/models/profiles/two", headers={"If-Match": tag}),
                     put(server, "new", CONFIG["two"], **{"If-Match": "*"})):
        assert error(response) == (412, "changed_meanwhile", None)
    now = server.call("GET", "/models/profiles/two").headers["ETag"]
    for tags in ("*", f"W/{now}"):
        assert error(put(server, "two", CONFIG["two"], **{"If-None-Match": tags})) == (412, "profile_exists", "name")
    assert told(server)["two"] == {"model": "tiny.gguf"} and "new" not in told(server)


def test_a_broken_file_is_for_a_person_to_mend(server):
    (server.data / "config.json").write_text("{")
    for response in (server.call("GET", "/models/profiles/two"), put(server, "two", {"model": "tiny.gguf"}),
                     server.call("DELETE", "/models/profiles/two")):
        assert error(response)[:2] == (409, "bad_config") and "data/config.json, line 1" in response.text
    assert server.answer("hi").status_code == 200, "with the last good one"


def test_a_key_needs_admin_and_changes_its_own_profiles_only(server):
    reader, own = server.make_key(scopes=["answer", "models:read", "models:switch"]), \
        server.make_key(scopes=["admin"], profiles=["two", "new"])
    assert server.call("GET", "/models/profiles/two", reader).status_code == 403
    assert server.call("POST", "/models/try", reader, json={"prompt": "x", "profile": CONFIG["one"]}).status_code == 403
    assert [*server.call("GET", "/models/profiles", own).json()["profiles"]] == ["two"]
    assert server.call("PUT", "/models/profiles/new", own, json=CONFIG["two"]).status_code == 201
    for method in ("GET", "PUT", "DELETE"):
        response = server.call(method, "/models/profiles/words", own, json=CONFIG["two"])
        assert error(response) == (403, "profile_forbidden", "name")
    assert told(server) == {**CONFIG, "new": CONFIG["two"]}


def tried(server, profile, **more):
    return server.call("POST", "/models/try", json={"prompt": "hello you", "profile": profile, **more})


@pytest.mark.parametrize("profile, wanted", [
    ({"model": "tiny.gguf", "temperature": "hot"}, (400, "invalid_request", "profile.temperature")),
    ({"model": "tiny.gguf", "x": 1}, (400, "invalid_request", "profile.x")),
    ({"model": "tiny.gguf", "system": "Be brief.", "template": "{input}"}, (400, "invalid_request", "profile")),
    ({"model": "no.gguf"}, (404, "not_found", "profile.model")), (5, (400, "invalid_request", "profile")),
    ({"model": "tiny.gguf", "embedding": True}, (422, "embedding_profile", "profile"))])
def test_what_cannot_be_tried(server, profile, wanted):
    assert error(tried(server, profile)) == wanted


def test_one_is_tried_beside_what_serves(server):
    """Another runner: it is loaded beside the selected one, and stays no longer than any other."""
    whole = tried(server, {"model": "other.gguf", "n_ctx": 256, "keep_loaded": True}, max_tokens=40).json()
    assert (whole["profile"], whole["model"], whole["session_id"]) == ("(trial)", "other.gguf", None)
    assert whole["result"] and whole["usage"]["completion_tokens"] and whole["context"]["window"] == 256
    loaded = {one["n_ctx"]: one for one in server.call("GET", "/models").json()["loaded"]}
    assert loaded[512]["selected"] and loaded[256]["profiles"] == [] and loaded[256]["unload_seconds"] > 0
    assert told(server) == CONFIG
    events = tried(server, CONFIG["one"], stream=True).text
    assert '"delta":' in events and '"done":true' in events
    assert 'profile="(trial)"' in server.call("GET", "/metrics").text


def test_what_serves_is_not_unloaded_for_a_try(start, home):
    server = start(MAX_LOADED="1").ready()
    refused = tried(server, {"model": "other.gguf"})
    assert error(refused)[:2] == (409, "no_room") and "raise it" in refused.json()["message"]
    assert tried(server, {"model": "tiny.gguf", "n_ctx": 512, "system": "Be brief."}).status_code == 200, "it shares"
    loaded = server.call("GET", "/models").json()["loaded"]
    assert [(one["model"], one["state"], one["selected"], one["restarts"]) for one in loaded
            if one["state"] == "ready"] == [("tiny.gguf", "ready", True, 0)]


def test_a_retry_of_a_try_gets_the_same_answer(server):
    bodies = [server.call("POST", "/models/try", json={"prompt": "hello", "profile": CONFIG["one"]},
                          headers={"Idempotency-Key": "a-try"}) for _ in range(2)]
    assert [body.status_code for body in bodies] == [200, 200] and bodies[0].content == bodies[1].content


def test_the_document_says_what_a_profile_may_hold(server):
    document = server.call("GET", "/openapi.json").json()
    paths, schemas = document["paths"], document["components"]["schemas"]
    assert {"get", "put", "delete"} <= {*paths["/models/profiles/{name}"]} and "post" in paths["/models/try"]
    assert schemas["ProfileBody"] == schemas["Profile"]
    assert schemas["Profile"]["required"] == ["model"] and schemas["Profile"]["properties"]["k"]["maximum"] == 1000
    put_it = paths["/models/profiles/{name}"]["put"]
    assert {"200", "201", "412"} <= {*put_it["responses"]}
    assert [one["name"] for one in put_it["parameters"]] == ["If-Match", "If-None-Match"]


@pytest.mark.model
def test_a_real_model_answers_as_the_profile_that_is_tried_says(start):
    server = start(runner="llama")
    server.call("PUT", "/models/profiles/real", json=(saved := {"model": STARTER.name, "n_ctx": 512, "temperature": 0}))
    before = (server.data / "config.json").read_text()
    first, same, short = (tried(server, {**saved, **more}).json() for more in (
        {}, {"temperature": 0.0}, {"max_tokens": 2}))
    other = tried(server, {**saved, "template": "Question: {input}\nThe capital of France is"}).json()
    assert first["result"] == same["result"] == server.answer("hello you", profile="real").json()["result"]
    assert short["usage"]["completion_tokens"] == 2 and short["finish_reason"] == "length"
    assert len({first["result"], short["result"], other["result"]}) == 3
    assert (server.data / "config.json").read_text() == before


def test_what_a_profile_kept_loaded_is_let_go_with_it(server):
    """It would stay for ever: nobody asks for it any more."""
    def stays(n_ctx):
        return [one["unload_seconds"] for one in server.call("GET", "/models").json()["loaded"]
                if (one["model"], one["n_ctx"]) == ("other.gguf", n_ctx)] == [None]
    for n_ctx in (320, 336):
        put(server, "kept", {"model": "other.gguf", "n_ctx": n_ctx, "keep_loaded": True})
        assert server.answer("hi", profile="kept").status_code == 200 and until(lambda at=n_ctx: stays(at))
    assert until(lambda: not stays(320)) and stays(336)
    put(server, "other", {"model": "other.gguf", "n_ctx": 336, "keep_loaded": True})
    assert server.call("DELETE", "/models/profiles/kept").status_code == 204 and stays(336), "for the other one"
    assert server.call("DELETE", "/models/profiles/other").status_code == 204 and until(lambda: not stays(336))
    put(server, "kept", {"model": "other.gguf", "n_ctx": 320, "keep_loaded": True})
    assert server.answer("hi", profile="kept").status_code == 200 and until(lambda: stays(320))
    switched = server.call("POST", "/models/model", json={"model": "tiny.gguf", "model_config": "kept"})
    assert switched.status_code == 200 and until(lambda: not stays(320))


def until(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True
