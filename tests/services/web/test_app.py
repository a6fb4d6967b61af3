"""Every route, method and credential; the one envelope; the headers of every response (rows A1 to A3, A8, K9, W7)."""

from __future__ import annotations

import logging
import re
from itertools import product

import pytest

from services.web.app import ROUTES
from services.web.routes import METHODS

BINDINGS = {f"/bindings/{platform}/<string:name>" for platform in ("slack", "discord", "teams")}
PAGE = {"/", "/chat", "/page/<string:name>"}
PUBLIC = {"/healthz", "/docs", "/docs/<string:name>", *PAGE, *BINDINGS}
ANY_METHOD = [*(method.upper() for method in METHODS), "HEAD", "OPTIONS", "TRACE", "BREW"]
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def path_of(rule: str) -> str:
    file = "page.js" if rule.startswith("/docs") else "main.js" if rule.startswith("/page/") else "1"
    return re.sub(r"<[^>]+>", file, rule)


@pytest.fixture
def credentials(world):
    revoked, key = world.parts.keys.create()
    world.parts.keys.revoke(key.id)
    good = world.make_key()
    return {"none": {}, "junk": {"Authorization": "junk"}, "empty": {"Authorization": ""},
            "bearer of nothing": {"Authorization": "Bearer "},
            "not ASCII": {"Authorization": "clé".encode().decode("latin-1")},
            "revoked": {"Authorization": revoked}, "all but the last character": {"X-API-Key": good[:-1]},
            "cookie": {"Cookie": f"Authorization={good}"}}


def test_every_route_is_declared_and_open_to_somebody(world):
    served = {rule.rule for rule in world.app.url_map.iter_rules()}
    assert served == {path for route in ROUTES for path in (route.path, route.alias) if path}
    gate = next(f.__self__ for f in world.app.before_request_funcs[None] if hasattr(f, "__self__")
                and hasattr(f.__self__, "closed"))
    assert gate.closed() == []
    assert {route.path for route in ROUTES for op in route.ops().values() if op.scope == "public"} == PUBLIC


@pytest.mark.parametrize("rule", [path for route in ROUTES for path in (route.path, route.alias) if path])
def test_nothing_answers_without_a_key(world, credentials, rule):
    for (name, headers), method, slash in product(credentials.items(), ANY_METHOD, ("", "/")):
        response = world.call(method, path_of(rule) + slash, key=None, headers=headers)
        is_open = rule in PUBLIC - BINDINGS and method in ("GET", "HEAD")
        absent = rule in BINDINGS and method == "POST"      # nothing is bound
        opened = 302 if rule == "/" else 200
        assert response.status_code == (opened if is_open else 404 if absent else 401), f"{method} {rule} with {name}"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_a_key_without_the_scope_is_403(world, route):
    for method, op in route.ops().items():
        others = [scope for scope in ("answer", "models:read", "models:switch", "keys", "admin") if scope != op.scope]
        response = world.call(method.upper(), path_of(route.path), key=world.make_key(scopes=others), json={})
        assert (response.status_code == 403) == (op.scope not in ("public", "any key")), f"{method} {response.text}"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_other_methods_are_405_and_name_those_that_work(world, route):
    served = {method.upper() for method in route.ops()}
    if route.path.startswith("/models/"):
        served.add("GET")       # of a model that is called so: /models/<name> is an alias of /v1/models/<name>
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} - served:
        response = world.call(method, path_of(route.path))
        allowed = set(response.headers["Allow"].split(", "))
        assert response.status_code == 405
        assert allowed - {"HEAD"} == served
        assert all(name in response.json["message"] for name in served)


def test_a_get_makes_no_key(world):
    before = world.parts.keys.list()
    response = world.call("GET", "/auth/key")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert world.parts.keys.list() == before


@pytest.mark.parametrize("path", ["/nothing", "/answer//7", "/answer//", "/Answer", "/answer/1/x", "/answer/1/fork/2",
                                  "/%2e%2e/answer", "/answer/..%2f..%2fetc", "/docs/../answer",
                                  "/docs/%2e%2e%2fapp.py", "/.env", "/static/x"])
def test_unknown_paths_are_told_to_holders_of_a_key_only(world, path):
    without, with_key = world.call("GET", path, key=None), world.call("GET", path)
    if path.startswith("/docs/"):
        assert (without.status_code, with_key.status_code) in ((404, 404), (401, 200), (401, 404))
    else:
        assert (without.status_code, with_key.status_code) in ((401, 404), (401, 400)), with_key.text


@pytest.mark.parametrize("path", ["/answer", "/answer/", "/models", "/models/", "/auth", "/auth/", "/healthz/",
                                  "/docs/"])
def test_both_spellings_without_a_redirect(world, path):
    assert world.call("GET", path).status_code == 200


ERRORS = [("GET", "/nothing", 404), ("DELETE", "/answer", 405), ("POST", "/answer", 415),
          ("GET", "/answer/absent", 404)]


@pytest.mark.parametrize("method, path, status", ERRORS)
def test_one_envelope_for_all(world, method, path, status):
    response = world.call(method, path, data=b"{}")
    assert response.status_code == status
    error = response.json["error"]
    assert response.json["message"] == error["message"] and set(error) >= {"message", "type", "code", "param"}
    assert response.mimetype == "application/json"


def test_too_large_in_the_envelope(world):
    body = b"x" * (world.settings.max_body_bytes + 1)
    response = world.call("POST", "/answer", data=body, content_type="application/json")
    assert (response.status_code, response.json["error"]["code"]) == (413, "too_large")


def test_a_surprise_is_a_500_that_says_nothing_but_its_id(scripted, caplog):
    scripted.parts.chat.events = [RuntimeError("/secret/path and a prompt")]
    scripted.app.testing = True
    with caplog.at_level(logging.ERROR):
        response = scripted.call("POST", "/answer", json={"prompt": "x"}, headers={"X-Request-Id": "abc-1"})
    assert response.status_code == 500
    assert "secret" not in response.text and "Traceback" not in response.text and "abc-1" in response.text
    assert "abc-1" in caplog.text and "RuntimeError" in caplog.text


@pytest.mark.parametrize("method, path", [("GET", "/healthz"), ("GET", "/auth"), ("GET", "/nothing"), ("PUT", "/auth"),
                                          ("POST", "/answer"), ("DELETE", "/answer/9")])
@pytest.mark.parametrize("key", [None, "master"])
def test_headers_of_every_response(world, method, path, key):
    response = world.call(method, path, **({"key": None} if key is None else {}))
    assert {name: response.headers[name] for name in HEADERS} == HEADERS
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
    assert not any(name.startswith("Access-Control") for name, _ in response.headers)
    assert "X-Powered-By" not in response.headers


@pytest.mark.parametrize("given, kept", [("abc.DEF_1-2", True), ("x" * 64, True), ("x" * 65, False), ("", False),
                                         ("a b", False), ("é", False), ("a\tb", False), ("<script>", False)])
def test_request_id_is_taken_when_it_is_harmless(world, given, kept):
    answer = world.call("GET", "/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"]
    assert (answer == given) == kept
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer)


def test_the_access_log_has_no_prompt_no_key_no_query_and_one_line(world, caplog):
    with caplog.at_level(logging.INFO, logger="parley.access"):
        world.call("POST", "/answer?page=secret-in-query", json={"prompt": "secret-in-prompt"})
        world.call("GET", "/answer/a%0ab%1b[31m")
        world.call("DELETE", f"/auth/keys/{(secret := world.make_key())}")      # where its id belongs
    lines = [record.getMessage() for record in caplog.records if record.name == "parley.access"]
    assert "secret" not in caplog.text and "test-master-key" not in caplog.text and secret not in caplog.text
    assert re.fullmatch(r"id=\S+ key=0 POST /answer 200 [0-9.]+ms in=\d+ out=\d+", lines[0])
    assert len(lines) == 3 and "DELETE /auth/keys/<key> 404" in lines[2]


def test_docs_are_served_from_here_alone(world):
    page = world.call("GET", "/docs", key=None)
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    for link in links:
        assert link == "data:," or world.call("GET", link, key=None).status_code == 200
    assert "<script>" not in page.text and "onclick" not in page.text and "style=" not in page.text
    assert "http" not in page.text.replace("<!doctype html>", "")
    assert world.call("GET", "/docs/page.js", key=None).mimetype == "text/javascript"
    assert world.call("GET", "/docs/LICENSE", key=None).status_code == 404
