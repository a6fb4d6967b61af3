"""Rows A1 to A4, A7, K3, K9, L2, on a small application behind the true gate, keys and limits."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, Response, g, jsonify, stream_with_context
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException

from auth import limits
from auth.authentication import generate_api_key
from auth.gate import ANY_KEY, PUBLIC, Gate
from auth.keys import Keys
from auth.limits import Admissions, Limiter
from services import wire
from services.errors import ParleyError, TooManyRequests

SCOPE_OF = {"/answer": "answer", "/models": "models:read", "/auth": ANY_KEY, "/auth/keys": "keys", "/admin": "admin"}


def build(keys: Keys, admissions: Admissions) -> SimpleNamespace:
    app = Flask("small", static_folder=None)
    app.url_map.strict_slashes = False
    gate = Gate(app, keys, admissions)

    @app.errorhandler(ParleyError)
    def told(error: ParleyError) -> tuple[Response, int, dict[str, str]]:
        retry = {} if error.retry_after is None else {"Retry-After": str(int(error.retry_after) + 1)}
        return jsonify(error.envelope()), error.status, retry

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> tuple[Response, int]:
        return jsonify(message=error.name), error.code or 500

    def view() -> Response:
        return jsonify(key=g.key and g.key.id, ticket=g.ticket is not None)

    for path in ("/healthz", *SCOPE_OF, "/forgotten"):
        app.add_url_rule(path, path, view, methods=["GET", "POST"] if path == "/answer" else ["GET"])

    def stream() -> Response:
        def words() -> Iterator[str]:
            yield "one"
            assert g.ticket is not None
            g.ticket.charge(wire.Charge(key="", prompt_tokens=1, completion_tokens=2))
            yield "two"
        return Response(stream_with_context(words()), mimetype="text/event-stream")
    app.add_url_rule("/stream", "/stream", stream, methods=["POST"])

    def broken() -> Response:
        raise RuntimeError("no")
    app.add_url_rule("/broken", "/broken", broken, methods=["POST"])
    app.add_url_rule("/auth/key", "/auth/key", view, methods=["POST"])

    gate.allow("/healthz", "GET", PUBLIC)
    for path, scope in SCOPE_OF.items():
        gate.allow(path, "GET", scope)
    gate.allow("/answer", "POST", "answer", answer=True, retryable=True)
    gate.allow("/stream", "POST", "answer", answer=True)
    gate.allow("/broken", "POST", "answer", answer=True)
    gate.allow("/auth/key", "POST", "keys")
    return SimpleNamespace(app=app, gate=gate, client=app.test_client(), keys=keys)


@pytest.fixture
def small(keys: Keys, admissions: Admissions) -> SimpleNamespace:
    return build(keys, admissions)


@pytest.fixture
def secret(keys: Keys) -> str:
    return keys.create(scopes=["answer", "models:read", "models:switch", "keys", "admin"])[0]


def call(client: FlaskClient, method: str, path: str, secret: str | None = None, **headers: str) -> Any:
    if secret is not None:
        headers["Authorization"] = secret
    return client.open(path, method=method, headers=headers)


# ---------------------------------------------------------------- A1: routes, methods, keys

def test_every_route_method_and_kind_of_key(small: SimpleNamespace, keys: Keys, clock: list[float],
                                            limiter: Limiter) -> None:
    revoked, key = keys.create()
    keys.revoke(key.id)
    expired, _ = keys.create(expires_in=5)
    clock[0] += 10
    poor, _ = keys.create(scopes=["models:switch"])
    small.gate._admissions = Admissions(small.gate._admissions._address, b"control", wrong_keys=10_000)
    for rule in small.app.url_map.iter_rules():
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            if rule.rule == "/healthz" and method in ("GET", "HEAD"):
                assert call(small.client, method, rule.rule).status_code == 200
                assert call(small.client, method, rule.rule, "junk").status_code == 200
                continue
            for wrong in (None, "junk", generate_api_key(), revoked, expired):
                response = call(small.client, method, rule.rule, wrong)
                assert response.status_code == 401, (method, rule.rule, wrong)
                assert response.headers["WWW-Authenticate"] == "Bearer"
                assert method == "HEAD" or response.json["message"] == "Unauthorized"
            status = call(small.client, method, rule.rule, poor).status_code
            open_to_it = rule.rule == "/auth" and method in ("GET", "HEAD")
            assert status == (200 if open_to_it or method == "OPTIONS" else status) and status in (200, 403, 405)
            assert open_to_it or method == "OPTIONS" or status != 200, (method, rule.rule)


def test_a_route_that_nobody_opened_is_closed_also_to_the_master(small: SimpleNamespace, secret: str) -> None:
    response = call(small.client, "GET", "/forgotten", secret)
    assert response.status_code == 403 and response.json["error"]["code"] == "route_closed"
    assert ("/forgotten", "GET") in small.gate.closed()
    assert [path for path, _ in small.gate.closed()] == ["/forgotten"]


def test_the_scope_that_lacks_is_named(small: SimpleNamespace, keys: Keys) -> None:
    poor, key = keys.create(scopes=["answer"])
    for path, scope in SCOPE_OF.items():
        response = call(small.client, "GET", path, poor)
        if scope in ("answer", ANY_KEY):
            assert response.json == {"key": key.id, "ticket": True}
        else:
            assert response.status_code == 403 and scope in response.json["message"]
            assert response.json["error"]["scope"] == scope


def test_opening_is_checked(small: SimpleNamespace) -> None:
    for endpoint, method, scope in (("/x", "GET", "root"), ("/x", "HEAD", ANY_KEY), ("/x", "get", ANY_KEY),
                                    ("/auth", "GET", ANY_KEY)):
        with pytest.raises(AssertionError):
            small.gate.allow(endpoint, method, scope)


# ---------------------------------------------------------------- A2: ways around

@pytest.mark.parametrize("path", ["/", "/unknown", "/answer/x", "/ANSWER", "//answer", "/healthz/../answer",
                                  "/%2e%2e/answer", "/healthz/x",
                                  "//healthz//x", "/answer%00", "/answer;x=1", "/healthz%2f..%2fanswer",
                                  "/answer/", "/./answer"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"])
def test_no_way_around_without_a_key(path: str, method: str, small: SimpleNamespace, secret: str) -> None:
    assert call(small.client, method, path).status_code == 401
    assert call(small.client, method, path, secret).status_code in (200, 308, 404, 405)


def test_a_get_changes_nothing(small: SimpleNamespace, secret: str) -> None:
    assert call(small.client, "GET", "/auth/key").status_code == 401
    assert call(small.client, "GET", "/auth/key", secret).status_code == 405
    assert call(small.client, "POST", "/auth/key", secret).status_code == 200


def test_options_needs_a_key_too(small: SimpleNamespace, secret: str) -> None:
    assert call(small.client, "OPTIONS", "/healthz").status_code == 401
    assert "POST" in call(small.client, "OPTIONS", "/answer", secret).headers["Allow"]


# ---------------------------------------------------------------- A3, A4: headers

def test_where_a_key_may_be(small: SimpleNamespace, secret: str) -> None:
    client = small.client
    for headers in ({"Authorization": secret}, {"Authorization": f"bEARER {secret}"}, {"X-API-Key": secret},
                    {"Authorization": secret, "X-API-Key": secret}):
        assert client.get("/auth", headers=headers).status_code == 200
    response = client.get("/auth", headers={"Authorization": secret, "X-API-Key": "other"})
    assert response.status_code == 400 and response.json["error"]["code"] == "conflicting_credentials"
    for headers in ({}, {"Authorization": secret}):
        response = client.get("/auth", query_string={"api_key": secret}, headers=headers)
        assert response.status_code == 400 and secret not in response.text and "Authorization" in response.text
    client.set_cookie("Authorization", secret)
    client.set_cookie("api_key", secret)
    assert client.get("/auth").status_code == 401


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(max_size=40) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")),
       header=st.sampled_from(["AUTHORIZATION", "X_API_KEY"]), query=st.binary(max_size=30))
def test_any_header_and_query_is_401_400_or_429(value: str, header: str, query: bytes, small: SimpleNamespace) -> None:
    environ = {f"HTTP_{header}": value, "QUERY_STRING": query.decode("latin-1")}
    response = small.client.get("/auth", environ_overrides=environ)
    assert response.status_code in (400, 401, 429)


# ---------------------------------------------------------------- A7, L2: many wrong keys

def test_many_wrong_keys(small: SimpleNamespace, secret: str) -> None:
    statuses = [call(small.client, "GET", "/auth", f"wrong {number}").status_code for number in range(1000)]
    assert statuses == [401] * 60 + [429] * 940
    tracemalloc.start()
    for number in range(500):
        response = call(small.client, "GET", "/auth", f"wrong {number}",
                        **{"X-Forwarded-For": f"10.0.{number // 256}.{number % 256}"})
        assert response.status_code == 429 and int(response.headers["Retry-After"]) >= 1
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 3_000_000
    assert call(small.client, "GET", "/auth", secret).status_code == 200
    assert call(small.client, "GET", "/auth").status_code == 401        # no key is no guess
    assert small.client.get("/auth", headers={"Authorization": "x"},
                            environ_overrides={"REMOTE_ADDR": "10.9.9.9"}).status_code == 401


# ---------------------------------------------------------------- limits and tickets

def test_limits_come_last_and_are_told_in_headers(small: SimpleNamespace, keys: Keys) -> None:
    limited, _ = keys.create(scopes=["answer"], requests_per_minute=3)
    assert call(small.client, "GET", "/models", limited).status_code == 403
    first = call(small.client, "GET", "/answer", limited)
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("3", "2")
    statuses = [call(small.client, "GET", path, limited).status_code for path in ("/unknown", "/auth", "/auth")]
    assert statuses == [404, 200, 429]
    refused = call(small.client, "GET", "/auth", limited)
    assert 1 <= int(refused.headers["Retry-After"]) <= 61 and "requests_per_minute" in refused.json["message"]


def places(limiter: Limiter, wanted: int) -> bool:
    deadline = time.monotonic() + 20
    while sum(limiter._places.values()) != wanted:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_a_stream_holds_its_place_until_it_is_closed(small: SimpleNamespace, keys: Keys, limiter: Limiter,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    limited, key = keys.create(max_parallel=1)
    response = small.client.post("/stream", headers={"Authorization": limited}, buffered=False)
    parts = iter(response.response)
    assert next(parts) == b"one" and places(limiter, 1)
    refused = call(small.client, "POST", "/answer", limited)
    assert refused.status_code == 429 and "max_parallel" in refused.json["message"]
    assert call(small.client, "GET", "/answer", limited).status_code == 200         # no answer, no place
    assert next(parts) == b"two"
    response.close()
    assert call(small.client, "POST", "/answer", limited).status_code == 200
    assert places(limiter, 0) and limiter.usage(key.id).completion_tokens == 2
    abandoned = small.client.post("/stream", headers={"Authorization": limited}, buffered=False)
    abandoned.close()
    assert places(limiter, 0)


def test_a_retry_is_no_second_answer(small: SimpleNamespace, keys: Keys, admissions: Admissions) -> None:
    limited, key = keys.create(max_parallel=1, requests_per_minute=4)
    with admissions.admit(replace(key, requests_per_minute=None), cost=0, place=True):
        assert call(small.client, "POST", "/answer", limited).status_code == 429
        for path, status in (("/answer", 200), ("/stream", 429)):           # only where retries are known
            assert call(small.client, "POST", path, limited, **{"Idempotency-Key": "k"}).status_code == status
        with pytest.raises(TooManyRequests):
            admissions.admit(replace(key, requests_per_minute=None), cost=0, place=True)
    assert admissions.usage(key.id).requests == 1


def test_an_error_gives_the_place_back(small: SimpleNamespace, keys: Keys, limiter: Limiter) -> None:
    limited, _ = keys.create(max_parallel=1)
    for _ in range(3):
        assert call(small.client, "POST", "/broken", limited).status_code == 500
        assert call(small.client, "POST", "/answer", limited).json["ticket"] is True
    assert places(limiter, 0)


def test_a_public_route_needs_neither_keys_nor_supervisor(keys: Keys) -> None:
    small = build(keys, Admissions("/nowhere.sock", b"x"))
    assert call(small.client, "GET", "/healthz").json == {"key": None, "ticket": False}
    secret, _ = keys.create()
    response = call(small.client, "GET", "/auth", secret)
    assert response.status_code == 503 and response.headers["Retry-After"]


def test_a_revoked_key_is_out_with_its_next_request(small: SimpleNamespace, keys: Keys, open_keys: Any) -> None:
    secret, key = keys.create()
    assert call(small.client, "GET", "/auth", secret).status_code == 200
    open_keys().revoke(key.id)
    assert call(small.client, "GET", "/auth", secret).status_code == 401


def test_patience_is_short() -> None:
    assert limits.PATIENCE <= 0.2       # a key at its limit must not hold the server's threads


def test_key_may_come_late_where_the_route_sees_to_it(small: SimpleNamespace, secret: str) -> None:
    """A handshake without a key comes in as nobody's; one with a wrong key, and other requests, do not."""
    small.app.add_url_rule("/late", "late", lambda: str(g.key and g.key.id))
    small.gate.allow("late", "GET", "answer", late=True)
    upgrade = {"Upgrade": "websocket"}
    assert call(small.client, "GET", "/late", **upgrade).text == "None"
    assert call(small.client, "GET", "/late", secret, **upgrade).status_code == 200
    assert call(small.client, "GET", "/late", "wrong", **upgrade).status_code == 401
    assert call(small.client, "GET", "/late").status_code == 401
    assert call(small.client, "POST", "/late", **upgrade).status_code == 401
