"""`/auth`: keys over HTTP. What a key may is decided in auth/; here is what comes out."""

from __future__ import annotations

import pytest


def test_whoami(world):
    key = world.make_key(name="mine", requests_per_minute=5)
    me = world.call("GET", "/auth", key=key).json
    assert me["auth"] is True and me["name"] == "mine" and me["limits"]["requests_per_minute"] == 5
    assert set(me["usage"]) == {"requests", "prompt_tokens", "completion_tokens"} and key not in str(me)


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
