"""What the page's server tells browsers, and what pages from elsewhere can do with it: nothing (W1, W3, W7)."""

from __future__ import annotations

import gzip

import pytest

from tests.services.web.conftest import MASTER

ORIGINS = ["https://evil.test", "null", "http://localhost.evil", "http://localhost", "http://127.0.0.1:1"]
FILES = ["/", "/chat", "/page/main.js", "/page/style.css", "/page/marked.js", "/page/nothing.js"]


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("method, path", [("GET", "/chat"), ("GET", "/page/main.js"), ("GET", "/auth"),
                                          ("POST", "/answer"), ("OPTIONS", "/answer"), ("OPTIONS", "/auth/keys")])
def test_no_page_elsewhere_may_read_anything(world, origin, method, path):
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true",
            "Access-Control-Request-Headers": "authorization,content-type"}
    for key in ({"key": None}, {}):
        response = world.call(method, path, headers=asks, **key)
        assert not [name for name, _ in response.headers if name.startswith("Access-Control")]
        if method == "OPTIONS":
            assert response.status_code in (401, 405)


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded",
                                   "multipart/form-data; boundary=x", ""])
def test_what_a_form_can_send_is_no_json(world, media):
    body = b'{"prompt": "x"}'
    response = world.call("POST", "/answer", data=body, content_type=media)
    assert response.status_code == 415
    assert world.call("POST", "/answer", key=None, data=body, content_type=media).status_code == 401


@pytest.mark.parametrize("method, path", [("GET", "/answer/x/fork"), ("GET", "/auth/keys/x/rotate"),
                                          ("GET", "/auth/key"), ("POST", "/chat"), ("PUT", "/page/main.js")])
def test_no_image_and_no_form_changes_anything(world, method, path):
    assert world.call(method, path).status_code == 405
    assert world.call(method, path, key=None).status_code == 401


def is_guarded(headers):
    """The headers of every response; files of /docs may be kept by a browser, which asks again."""
    assert headers["Cache-Control"] in ("no-store", "no-cache")
    assert (headers["Referrer-Policy"], headers["X-Content-Type-Options"]) == ("no-referrer", "nosniff")
    assert headers["X-Frame-Options"] == "DENY" and "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_every_response_is_guarded(world):
    """Of every path and method, with a key and without; of streams, and of what goes wrong on the way to them."""
    for rule in world.app.url_map.iter_rules():
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            path = rule.build(dict.fromkeys(rule.arguments, "1"), append_unknown=False)[1]
            for key in ({}, {"key": None}):
                is_guarded(world.call(method, path, json={}, **key).headers)
    for body in ({"prompt": "x"}, {"prompt": "x", "stream": True}, {"prompt": ""}, []):
        response = world.call("POST", "/answer", json=body)
        is_guarded(response.headers)
        assert response.headers["Cache-Control"] == "no-store"
    is_guarded(world.call("GET", "/nothing").headers)
    is_guarded(world.call("POST", "/answer", data=b"{", content_type="application/json").headers)


@pytest.mark.parametrize("origin", [None, *ORIGINS])
def test_a_refused_socket_is_guarded(world, origin):
    """W3, W7: a page elsewhere opens none."""
    shakes = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
              "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", **({"Origin": origin} if origin else {})}
    for headers, status in ((shakes, 403 if origin not in (None, "http://localhost") else 422), ({}, 426)):
        response = world.call("GET", "/gpt-socket/assistant", headers=headers)
        assert response.status_code == status
        is_guarded(response.headers)


@pytest.mark.parametrize("path", [*FILES, "/auth", "/answer"])
def test_no_cookie_no_cache_no_frame(world, path):
    for cookie in ({}, {"Cookie": f"key={MASTER}; Authorization={MASTER}; api_key={MASTER}"}):
        response = world.call("GET", path, key=None, headers=cookie)
        assert "Set-Cookie" not in response.headers
        assert (response.headers["Cache-Control"], response.headers["Referrer-Policy"]) == ("no-store", "no-referrer")
        assert (response.headers["X-Content-Type-Options"], response.headers["X-Frame-Options"]) == ("nosniff", "DENY")
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.status_code in (200, 302, 404) or (path in ("/auth", "/answer") and response.status_code == 401)


def test_scripts_and_styles_come_from_here_alone(world):
    policy = dict(one.strip().split(" ", 1) for one in
                  world.call("GET", "/chat", key=None).headers["Content-Security-Policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == ("'none'", "'self'", "'self'")
    assert policy["require-trusted-types-for"] == "'script'" and policy["form-action"] == policy["base-uri"] == "'none'"
    page = world.call("GET", "/chat", key=None).text
    assert "<style" not in page and " style=" not in page
    assert page.count("<script") == page.count('<script src="/page/')


@pytest.mark.parametrize("accepted, packed", [("gzip, deflate, br", True), ("*", True), ("br", False), (None, False),
                                              ("gzip;q=0", False)])
def test_files_are_sent_packed_to_those_who_can_unpack_them(world, accepted, packed):
    plain = world.call("GET", "/page/style.css", key=None)
    response = world.call("GET", "/page/style.css", key=None,
                          headers={} if accepted is None else {"Accept-Encoding": accepted})
    assert response.headers["Vary"] == "Accept-Encoding" and response.headers.get("Content-Encoding") == (
        "gzip" if packed else None)
    assert (gzip.decompress(response.data) if packed else response.data) == plain.data
    assert (len(response.data) < len(plain.data) / 2) is packed
