"""`/answer/<id>`: one's own sessions, and nobody else's (rows I1 to I3)."""

from __future__ import annotations

import json

import pytest

from services.errors import Unavailable

ROUTES = [("GET", "", None), ("PATCH", "", {"name": "new"}), ("DELETE", "", None), ("POST", "/fork", None),
          ("POST", "/fork", {"at": 1}), ("POST", "/rewind", {"to": 1})]


@pytest.fixture
def talk(world):
    """A session `1` of key A with two interactions, and the keys A and B."""
    a, b = world.make_key(), world.make_key()
    for prompt in ("one", "two"):
        world.call("POST", "/answer", key=a, json={"prompt": prompt, "session_id": 1})
    return world, a, b


@pytest.mark.parametrize("method, path, body", ROUTES)
def test_somebody_else_s_is_as_absent_as_none(talk, method, path, body):
    world, a, b = talk
    for key in (b, world.settings.master_key):
        theirs = world.call(method, f"/answer/1{path}", key=key, json=body)
        absent = world.call(method, f"/answer/2{path}", key=key, json=body)
        assert theirs.status_code == absent.status_code == 404
        assert theirs.json["message"].replace("1", "2") == absent.json["message"]
    assert len(world.call("GET", "/answer/1", key=a).json["turns"]) == 4


def test_lists_are_one_s_own_and_the_master_sees_all(talk):
    world, a, b = talk
    world.call("POST", "/answer", key=b, json={"prompt": "mine", "session_id": 1})
    assert world.call("GET", "/answer", key=a).json == {"1": "one"}
    assert world.call("GET", "/answer", key=b).json == {"1": "mine"}
    everybody = world.call("GET", "/answer").json
    assert sorted(everybody.values()) == ["mine", "one"] and all(name.endswith("/1") for name in everybody)


def test_lists_may_begin_with_what_was_used_last(talk):
    world, a, _ = talk
    world.call("POST", "/answer", key=a, json={"prompt": "three", "session_id": 0})
    for order, names in (("", ["three", "one"]), ("?order=id", ["three", "one"]), ("?order=used", ["three", "one"])):
        assert list(json.loads(world.call("GET", f"/answer{order}", key=a).data).values()) == names
    world.call("PATCH", "/answer/1", key=a, json={"name": "renamed"})
    assert list(json.loads(world.call("GET", "/answer?order=used", key=a).data)) == ["1", "0"]
    assert list(json.loads(world.call("GET", "/answer", key=a).data)) == ["0", "1"]
    assert world.call("GET", "/answer?order=name", key=a).status_code == 400


def test_rename_fork_rewind_delete(talk):
    world, a, _ = talk
    assert world.call("PATCH", "/answer/1", key=a, json={"name": "renamed"}).json["name"] == "renamed"
    fork = world.call("POST", "/answer/1/fork", key=a, json={"at": 2}).json
    assert [turn["content"] for turn in fork["turns"]] == ["one", "you said: one"]
    assert len(world.call("POST", "/answer/1/fork", key=a).json["turns"]) == 4
    assert len(world.call("POST", "/answer/1/rewind", key=a, json={"to": 2}).json["turns"]) == 2
    assert world.call("POST", "/answer/1/rewind", key=a, json={"to": 9}).status_code == 400
    deleted = world.call("DELETE", "/answer/1", key=a)
    assert (deleted.status_code, deleted.data) == (204, b"") and "Content-Type" not in deleted.headers
    assert world.call("GET", "/answer/1", key=a).status_code == 404
    assert world.call("GET", f"/answer/{fork['session_id']}", key=a).status_code == 200
    owner = world.call("GET", "/auth", key=a).json["id"]
    assert world.parts.engine.forgotten == [(owner, "1"), (owner, "1")]     # the rewind, the deletion


def test_what_cannot_be_forgotten_does_not_keep_a_session(talk, caplog):
    world, a, _ = talk
    world.parts.engine.down = Unavailable("the supervisor is gone")
    assert world.call("DELETE", "/answer/1", key=a).status_code == 204
    assert "the supervisor is gone" in caplog.text and world.call("GET", "/answer/1", key=a).status_code == 404


def test_a_retried_fork_is_one_fork(talk):
    world, a, _ = talk

    def fork(key, **body):
        return world.call("POST", "/answer/1/fork/", key=a, json=body, headers={"Idempotency-Key": key})
    first, second = fork("f1", at=2), fork("f1", at=2)
    assert first.json == second.json and len(world.call("GET", "/answer", key=a).json) == 2
    assert fork("f2", at=2).json["session_id"] != first.json["session_id"]
    assert fork("f1", at=4).status_code == 409


@pytest.mark.parametrize("sid", ["..", ".", "a.b", "x" * 300, "%00", "a%20b", "１", "a%2fb", "%ff",
                                 "..%2f..%2fetc%2fpasswd", "1.0", "Active", "con"])
@pytest.mark.parametrize("method, path, body", ROUTES)
def test_ids_that_are_none(world, sid, method, path, body):
    assert world.call(method, f"/answer/{sid}{path}", json=body).status_code in (400, 404, 405)


@pytest.mark.parametrize("sid", ["active1", "-1", "0", "01", "head", "x" * 64])
def test_ids_that_look_odd_are_only_names(world, sid):
    assert world.call("POST", "/answer", json={"prompt": "x", "session_id": sid}).status_code == 200
    assert world.call("GET", f"/answer/{sid}").status_code == 200


@pytest.mark.parametrize("body", [{"name": ""}, {"name": " "}, {"name": 1}, {"name": "x" * 201}, {"title": "x"}, {}])
def test_bad_names_are_400(talk, body):
    world, a, _ = talk
    assert world.call("PATCH", "/answer/1", key=a, json=body).status_code == 400
    assert world.call("GET", "/answer/1", key=a).json["name"] == "one"


@pytest.mark.parametrize("path, body", [("/fork", {"at": -1}), ("/fork", {"at": True}), ("/fork", {"at": "1"}),
                                        ("/fork", {"to": 1}), ("/rewind", {}), ("/rewind", {"to": 1.0}),
                                        ("/rewind", {"to": None})])
def test_bad_places_are_400(talk, path, body):
    world, a, _ = talk
    assert world.call("POST", f"/answer/1{path}", key=a, json=body).status_code == 400
