"""`/auth`: keys over HTTP. What a key may is decided in auth/; here is what comes out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from auth.records import LOCAL_ID
from services.errors import Unavailable
from services.web.bodies import KeyBody, KeyEdit
from tests.conftest import ROOT


def test_whoami(world):
    key = world.make_key(name="mine", requests_per_minute=5)
    me = world.call("GET", "/auth", key=key).json
    assert me["auth"] is True and me["name"] == "mine" and me["limits"]["requests_per_minute"] == 5
    assert set(me["usage"]) == {"requests", "prompt_tokens", "completion_tokens"} and key not in str(me)


def test_a_list_of_keys_tells_what_each_has_used(world, monkeypatch):
    listed = world.call("GET", "/auth/keys").json["keys"]
    assert [one["usage"]["requests"] for one in listed] == [len(world.parts.admissions.tickets)] * len(listed)

    def away(_):
        raise Unavailable("the supervisor is gone")
    monkeypatch.setattr(world.parts.admissions, "usages", away)
    assert [one["usage"] for one in world.call("GET", "/auth/keys").json["keys"]] == [None] * len(listed)


def test_a_key_without_a_body_may_what_the_seed_s_may(world):
    response = world.call("POST", "/auth/key")
    assert response.status_code == 201
    assert response.json["scopes"] == ["answer", "models:read", "models:switch"]
    assert world.call("GET", "/auth", key=response.json["key"]).json["id"] == response.json["id"]


def test_a_key_with_a_body(world):
    made = world.call("POST", "/auth/key", json={"name": "n", "scopes": ["answer"], "profiles": ["one"],
                                                 "expires_in": 60, "requests_per_minute": 3, "max_parallel": 2,
                                                 "weight": 2.5}).json
    assert (made["name"], made["scopes"], made["profiles"], made["max_parallel"]) == ("n", ["answer"], ["one"], 2)
    assert made["expires_at"] and made["weight"] == 2.5
    world.call("POST", "/answer", key=made["key"], json={"prompt": "x", "session_id": 1})
    sent = world.parts.engine.requests[-1]
    assert (sent.weight, sent.owner, sent.session) == (2.5, made["id"], "1")
    assert world.call("GET", "/auth").json["weight"] == 1


@pytest.mark.parametrize("body, param", [({"scopes": ["all"]}, "scopes"), ({"scopes": []}, "scopes"),
                                         ({"name": 1}, "name"), ({"name": "n" * 81}, "name"),
                                         ({"expires_in": 0}, "expires_in"), ({"expires_in": "1"}, "expires_in"),
                                         ({"max_parallel": 0}, "max_parallel"), ({"owner": "x"}, "owner"),
                                         ({"weight": 0}, "weight"), ({"tokens_per_minute": 0}, "tokens_per_minute")])
def test_wrong_wishes_are_400(world, body, param):
    response = world.call("POST", "/auth/key", json=body)
    assert response.status_code == 400 and response.json["error"]["param"].startswith(param)


def test_the_secret_is_shown_once(world):
    made = world.call("POST", "/auth/key").json
    for path in ("/auth/keys", f"/auth/keys/{made['id']}", "/auth"):
        response = world.call("GET", path)
        assert response.status_code == 200
        assert made["key"] not in response.text and '"hash"' not in response.text


def test_revoke_and_rotate(world):
    made = world.call("POST", "/auth/key").json
    turned = world.call("POST", f"/auth/keys/{made['id']}/rotate", json={"grace_seconds": 0}).json
    assert turned["key"] != made["key"] and turned["id"] == made["id"]
    assert world.call("GET", "/auth", key=made["key"]).status_code == 401
    assert world.call("POST", f"/auth/keys/{made['id']}/rotate").status_code == 200
    gone = world.call("DELETE", f"/auth/keys/{made['id']}")
    assert gone.status_code == 200 and gone.json["revoked_at"]
    assert world.call("GET", "/auth", key=turned["key"]).status_code == 401
    assert world.call("POST", f"/auth/keys/{made['id']}/rotate").status_code == 409


@pytest.mark.parametrize("key_id", ["nobody", "..", "%2e%2e", "x" * 300, "%00"])
def test_unknown_keys_are_404(world, key_id):
    assert world.call("GET", f"/auth/keys/{key_id}").status_code == 404
    assert world.call("DELETE", f"/auth/keys/{key_id}").status_code == 404


def test_the_master_is_not_revoked_over_http(world):
    assert world.call("DELETE", "/auth/keys/0").status_code == 409


def test_an_edit_changes_what_it_gives(world):
    made = world.call("POST", "/auth/key", json={"name": "n", "profiles": ["one"], "expires_in": 60, "max_parallel": 2,
                                                 "token_budget": {"tokens": 5, "per": "day"}}).json
    path, secret = f"/auth/keys/{made['id']}", made.pop("key")
    edited = world.call("PATCH", path, json={"requests_per_minute": 3, "weight": 2})
    assert edited.status_code == 200 and edited.json == made | {"requests_per_minute": 3, "weight": 2.0}
    assert world.call("GET", "/auth", key=secret).json["limits"]["requests_per_minute"] == 3
    bare = dict.fromkeys(("profiles", "expires_in", "max_parallel", "token_budget", "requests_per_minute", "weight"))
    nothing = {**dict.fromkeys(("profiles", "expires_at", "max_parallel", "token_budget", "requests_per_minute")),
               "weight": 1.0}
    assert world.call("PATCH", path, json=bare).json == made | nothing == world.call("GET", path).json
    assert world.call("PATCH", path, json={"token_budget": {"tokens": 9, "per": "total"}, "scopes": ["answer"],
                                           "expires_in": 60}).json["scopes"] == ["answer"]
    assert {*KeyEdit.model_fields} == {*KeyBody.model_fields}


@pytest.mark.parametrize("body, param", [
    ({}, None), ({"name": None}, "name"), ({"scopes": None}, "scopes"), ({"name": " "}, "name"),
    ({"token_budget": {"tokens": 5}}, "token_budget.per"), ({"expires_at": "2030-01-01"}, "expires_at"),
    ({"max_parallel": 0}, "max_parallel"), ({"expires_in": "none"}, "expires_in")])
def test_what_is_no_edit_is_400(world, body, param):
    made = world.call("POST", "/auth/key").json
    response = world.call("PATCH", f"/auth/keys/{made['id']}", json=body)
    assert response.status_code == 400 and response.json["error"]["param"] == param
    assert param or "give one or more of name, scopes, profiles, " in response.json["message"]


def test_who_may_edit_what(world):
    small = world.make_key(scopes=["keys", "answer"], requests_per_minute=5)
    own = world.call("GET", "/auth", key=small).json["id"]
    plain = world.call("POST", "/auth/key").json["id"]
    for key_id, body, status, param in (
            ("0", {"name": "x"}, 409, None), ("nobody", {"name": "x"}, 404, "id"),
            (plain, {"name": "x"}, 403, "scopes"), (own, {"scopes": ["admin"]}, 403, "scopes"),
            (own, {"requests_per_minute": 6}, 403, "requests_per_minute"),
            (own, {"requests_per_minute": None}, 403, "requests_per_minute"),
            (own, {"requests_per_minute": 4, "name": "less"}, 200, None)):
        response = world.call("PATCH", f"/auth/keys/{key_id}", key=small, json=body)
        assert response.status_code == status, response.json
        assert status == 200 or response.json["error"]["param"] == param
    assert world.call("PATCH", f"/auth/keys/{own}", key=world.make_key(), json={"name": "x"}).status_code == 403
    world.call("DELETE", f"/auth/keys/{plain}")
    assert world.call("PATCH", f"/auth/keys/{plain}", json={"name": "x"}).status_code == 409


def test_an_edit_holds_at_once_in_all_workers_and_for_requests_without_a_key(start):
    server = start(WEB_WORKERS="2", BYPASS_AUTHORIZATION="1")
    made = server.call("POST", "/auth/key").json()
    path, key = f"/auth/keys/{made['id']}", made["key"]

    def limits():
        return {server.call("GET", "/auth", key).json()["limits"]["requests_per_minute"] for _ in range(12)}
    for limit in (1000, 2000, None):
        assert server.call("PATCH", path, json={"requests_per_minute": limit}).status_code == 200
        assert limits() == {limit}
    command = [sys.executable, str(ROOT / "main.py"), "keys", "edit", made["id"], "--rpm", "3000"]
    subprocess.run(command, check=True, env={**os.environ, "DATA_DIR": str(server.data)}, cwd=ROOT, timeout=60)
    assert limits() == {3000}
    local = f"/auth/keys/{LOCAL_ID}"
    assert server.call("PATCH", local, json={"scopes": ["answer"]}).status_code == 409
    assert server.call("PATCH", local, json={"requests_per_minute": 2}).json()["requests_per_minute"] == 2
    asked = [server.call("GET", "/auth", key=None).status_code for _ in range(6)]
    assert asked == [200, 200, 429, 429, 429, 429]
    assert server.call("PATCH", local, json={"requests_per_minute": None}).status_code == 200
    assert server.call("GET", "/auth", key=None).status_code == 200
    assert f"key {made['id']} was edited by key 0: requests_per_minute" in server.log and key not in server.log
