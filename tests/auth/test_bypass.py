"""BYPASS_AUTHORIZATION: which requests without a key may answer, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from auth import bypass
from auth.gate import NO_KEY
from auth.keys import Keys
from auth.limits import Admissions
from auth.records import LOCAL_ID
from services.errors import Unauthorized
from tests.auth.test_gate import build

PLAIN = {"REMOTE_ADDR": "127.0.0.1", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "127.0.0.1:5000"}
HOSTS = ["localhost", "LocalHost:5000", "127.0.0.1", "127.0.0.1:80", "127.9.8.7:5000", "[::1]", "[::1]:5000"]
FORGED = ["", "example.org", "localhost.example.org", "127.0.0.1.example.org", "127.0.0.1:5000.example.org", "10.0.0.1",
          "127.1", "0.0.0.0", "[::]", "::1", "localhost:5000,localhost", "localhost@example.org", "user@localhost",
          "localhost\n", " localhost", "localhost.", "2130706433", "127.0.0.1:"]
DOUBTS = [{"HTTP_X_FORWARDED_FOR": "127.0.0.1"}, {"HTTP_FORWARDED": "for=127.0.0.1"}, {"HTTP_X_FORWARDED_HOST": ""},
          {"HTTP_X_FORWARDED_PROTO": "http"}, {"HTTP_X_REAL_IP": "::1"}, {"HTTP_VIA": "1.1 x"},
          {"HTTP_CF_CONNECTING_IP": "1.2.3.4"}, {"SERVER_PROTOCOL": "HTTP/1.0"}, {"REMOTE_ADDR": "10.0.0.7"},
          {"REMOTE_ADDR": ""}, {"REMOTE_ADDR": "::ffff:10.0.0.7"}, {"HTTP_ORIGIN": "https://example.org"},
          {"HTTP_ORIGIN": "null"}, {"HTTP_ORIGIN": "http://localhost:5000"}, {"HTTP_ORIGIN": "http://127.0.0.1:5001"},
          {"HTTP_ORIGIN": "https://127.0.0.1:5000"}, {"HTTP_ORIGIN": "http://127.0.0.1:5000.example.org"},
          {"HTTP_SEC_FETCH_SITE": "cross-site"}, {"HTTP_SEC_FETCH_SITE": "same-site"}, {"HTTP_SEC_FETCH_SITE": ""}]


@pytest.mark.parametrize("more", [{"HTTP_HOST": host} for host in HOSTS] + [
    {"HTTP_ORIGIN": "http://127.0.0.1:5000"}, {"HTTP_SEC_FETCH_SITE": "same-origin"}, {"HTTP_SEC_FETCH_SITE": "none"},
    {"REMOTE_ADDR": "::1"}, {"REMOTE_ADDR": "127.0.0.3"}])
def test_this_machines_own_user_needs_no_key(more: dict[str, str]) -> None:
    bypass.check({**PLAIN, **more}, "code")


@pytest.mark.parametrize("more", [{"HTTP_HOST": host} for host in FORGED] + DOUBTS)
def test_others_do(more: dict[str, str]) -> None:
    with pytest.raises(Unauthorized, match="Unauthorized") as caught:
        bypass.check({**PLAIN, **more}, "code")
    assert caught.value.code == "code" and "BYPASS_AUTHORIZATION does not count for" in caught.value.details["hint"]


@pytest.fixture
def client(open_keys: Callable[..., Keys], admissions: Admissions) -> Any:
    keys = open_keys(bypass_authorization=True)
    keys.ensure_master()
    keys.ensure_local()
    return build(keys, admissions).client


def test_it_may_answer_and_nothing_else(client: Any, keys: Keys) -> None:
    assert client.post("/answer").json == {"key": LOCAL_ID, "ticket": True} and client.get("/auth").status_code == 200
    for method, path in (("GET", "/auth/keys"), ("POST", "/auth/key"), ("GET", "/models"), ("GET", "/admin")):
        assert client.open(path, method=method).status_code == 403, path
    assert client.get("/forgotten").status_code == 403 and client.get("/unknown").status_code == 404
    for headers in ({"X-Forwarded-For": "::1"}, {"Host": "example.org"}, {"Origin": "http://example.org"},
                    {"Authorization": "wrong"}, {"X-API-Key": ""}, {"Authorization": "a.b.c"}):
        response = client.post("/answer", headers=headers)
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer"), headers
    secret, key = keys.create()
    for headers in ({}, {"X-Forwarded-For": "::1"}, {"Host": "example.org"}):       # a key opens as ever
        assert client.post("/answer", headers={"Authorization": secret, **headers}).json["key"] == key.id


def test_others_without_a_key_are_no_guess(client: Any) -> None:
    for _ in range(100):
        assert client.post("/answer", headers={"Host": "example.org"}).status_code == 401


def test_its_record_may_be_revoked_and_gets_no_more_by_hand(client: Any, keys: Keys, open_keys: Any,
                                                            data: Path) -> None:
    path = data / "api_keys.json"
    path.write_text(path.read_text().replace('"answer"\n', '"answer", "keys", "admin"\n'))
    assert "keys" in open_keys().get(LOCAL_ID).scopes and client.get("/auth/keys").status_code == 403
    keys.revoke(LOCAL_ID)
    assert client.post("/answer").status_code == 401
    open_keys(bypass_authorization=True).ensure_local()
    assert client.post("/answer").status_code == 401        # a start does not undo that


def test_without_the_setting_its_record_opens_nothing(client: Any, open_keys: Callable[..., Keys],
                                                      admissions: Admissions) -> None:
    plain = open_keys()
    assert plain.local_secret is None and plain.get(LOCAL_ID).scopes == ("answer",)
    response = build(plain, admissions).client.post("/answer")
    assert (response.status_code, response.json["error"]["code"]) == (401, NO_KEY)
    first, second = (open_keys(bypass_authorization=True) for _ in range(2))
    assert first.local_secret != second.local_secret
    assert second.authenticate((first.local_secret or "").encode()) is None         # each process's own


def test_only_one_record_is_made(open_keys: Callable[..., Keys]) -> None:
    for _ in range(3):
        open_keys(bypass_authorization=True).ensure_local()
    assert [key.id for key in open_keys().list()] == [LOCAL_ID]
