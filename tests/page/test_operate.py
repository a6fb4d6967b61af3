"""Running the place on the page: what a key's scopes open, and each task of an operator in the browser."""

from __future__ import annotations

import functools
import hashlib
import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from services.web.page import FOLDER
from tests.conftest import Server, make_home
from tests.hub_server import File, Hub
from tests.page.conftest import CONFIG
from tests.tiny_wheel import write_bert

EMBEDDING = {"model": "words.gguf", "embedding": True, "n_ctx": 64}
INDEX = """
- name: fresh
  description: a model of a gallery
  license: mit
  config_file: {parameters: {model: fresh.gguf}}
  files: [{filename: fresh.gguf, uri: "huggingface://owner/repo/fresh.gguf", sha256: SHA}]
- {name: damaged, config_file: {parameters: {model: damaged.gguf}},
   files: [{filename: damaged.gguf, uri: "huggingface://owner/repo/fresh.gguf", sha256: ZERO}]}
"""
FIRE = "window.fired=1"
PAYLOADS = [payload.replace("FIRE", FIRE) for payload in (
    "<script>FIRE</script>", "<img src=x onerror=FIRE>", "<svg onload=FIRE>", '"><img src=x onerror=FIRE>',
    "javascript:FIRE", "</th><script>FIRE</script>", "<iframe srcdoc='<script>FIRE</script>'>", "${FIRE}",
    "<details open ontoggle=FIRE>", "<a href='javascript:FIRE' autofocus onfocus=FIRE>x</a>")]
FOREIGN = "main.operate :is(script, img, iframe, object, embed, style, link), main.operate [onerror], " \
          "main.operate [onload], main.operate [onfocus], main.operate a:not([href^='#'])"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("operate") / "home", {**CONFIG, "words": EMBEDDING})
    write_bert(home / "models" / "words.gguf")
    data = (home / "models" / "tiny.gguf").read_bytes()
    with Hub() as hub:
        hub.add("owner/repo", "fresh.gguf", data)
        index = INDEX.replace("SHA", hashlib.sha256(data).hexdigest()).replace("ZERO", "0" * 64)
        hub.plain["/index.yaml"] = File(index.encode())
        galleries = json.dumps([{"name": "test", "url": f"{hub.url}/index.yaml"}])
        server = Server(home, GALLERIES=galleries, HF_ENDPOINT=hub.url).start().ready()
        yield server
        server.end()


def go(tab, title):
    tab.page.get_by_role("navigation", name="Views").get_by_role("link", name=title, exact=True).click()
    expect(tab.page.get_by_role("heading", level=2, name=title)).to_be_focused()
    return tab.page.locator("main.operate")


def row(tab, text):
    return tab.page.locator("main.operate tbody tr", has_text=text)


def agree(tab, button):
    tab.page.get_by_role("dialog").get_by_role("button", name=button).click()


def fulfil(answer, route):
    route.fulfill(json=answer)


def serious(tab):
    """What axe finds that is serious or critical."""
    return [(one["id"], [node["html"] for node in one["nodes"]]) for one in Axe().run(tab.page).response["violations"]
            if one["impact"] in ("serious", "critical")]


def views(tab):
    return tab.page.get_by_role("navigation", name="Views").get_by_role("link").all_inner_texts()


def test_a_key_sees_what_its_scopes_open(tab, server):
    tab.key = server.make_key(scopes=["answer"])
    asked = []
    tab.page.on("request", lambda request: asked.append(request.url))
    tab.sign_in()
    assert views(tab) == ["Chat", "Jobs", "Knowledge"]
    for name, scope in (("keys", "keys"), ("models", "models:read"), ("load", "admin")):
        tab.page.evaluate(f"location.hash = '{name}'")
        expect(tab.page.locator("main.operate")).to_contain_text(f"lacks the scope {scope}")
    refused = [tab.server.url + path for path in ("/auth/keys", "/models", "/metrics")]
    assert not {*refused} & {*asked}
    tab.wrong.clear()           # the chat asks for models that this key may not see
    tab.key = server.make_key(scopes=["answer", "models:read", "keys"])
    tab.page.get_by_role("button", name="Sign out").click()
    tab.sign_in()
    assert views(tab) == ["Chat", "Keys", "Models", "Jobs", "Knowledge"]
    place = go(tab, "Models")
    expect(place).to_contain_text("needs the scope models:switch")
    place.get_by_text("Get a model", exact=True).click()
    expect(place).to_contain_text("needs the scope admin")
    assert not tab.wrong


def test_views_have_addresses(master):
    page = master.page
    go(master, "Jobs")
    assert page.url.endswith("#jobs") and page.title() == "Jobs · Parley"
    assert not page.locator("#prompt").is_visible()
    go(master, "Knowledge")
    page.go_back()
    expect(page.get_by_role("heading", level=2)).to_have_text("Jobs")
    page.reload()
    expect(page.get_by_role("heading", level=2)).to_have_text("Jobs")
    expect(page.get_by_role("link", name="Jobs")).to_have_attribute("aria-current", "page")
    page.get_by_role("link", name="Chat", exact=True).click()
    expect(page.locator("#prompt")).to_be_visible()
    expect(page.locator("main.operate")).to_have_count(0)
    assert not master.wrong


def test_keys_are_made_rotated_and_revoked(master, server):
    page, place = master.page, go(master, "Keys")
    place.locator("summary", has_text="Make a key").click()
    place.get_by_label("Name", exact=True).fill("a colleague")
    place.get_by_label("Requests a minute").fill("60")
    place.get_by_label("Token budget").fill("5000")
    place.get_by_label("Expires after days").fill("2")
    place.get_by_label("Profiles", exact=True).fill("one, two")
    page.get_by_role("button", name="Make the key").click()
    secret = place.get_by_label("Secret").inner_text()
    expect(row(master, "a colleague")).to_contain_text("60 requests/min, 5,000 tokens a day")
    expect(row(master, "a colleague")).to_contain_text("one, two")
    assert server.answer("hello", key=secret).status_code == 200
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == secret
    page.get_by_role("button", name="Done").click()
    assert secret not in page.content()
    go(master, "Jobs")
    go(master, "Keys")
    expect(row(master, "a colleague")).to_contain_text("1 request, ")
    page.get_by_role("button", name="Rotate a colleague").click()
    page.get_by_label("The old one goes on to work for").select_option("3600")
    agree(master, "Rotate")
    turned = place.get_by_label("Secret").inner_text()
    assert turned != secret
    assert [server.call("GET", "/auth", key).status_code for key in (secret, turned)] == [200, 200]
    page.get_by_role("button", name="Revoke a colleague").click()
    agree(master, "Revoke")
    expect(row(master, "a colleague")).to_contain_text("revoked")
    assert server.call("GET", "/auth", turned).status_code == 401
    assert not master.wrong


def test_what_a_key_may_not_grant_is_told_at_its_field(tab, server):
    tab.key = server.make_key(scopes=["answer", "keys"], profiles=["one"])
    tab.sign_in()
    place = go(tab, "Keys")
    place.locator("summary", has_text="Make a key").click()
    assert place.locator("[name=scopes]").evaluate_all("all => all.map((one) => one.value)") == ["answer", "keys"]
    place.get_by_label("Profiles", exact=True).fill("two")
    tab.page.get_by_role("button", name="Make the key").click()
    expect(place.get_by_role("alert")).to_contain_text("its own profiles: one")
    expect(place.get_by_label("Profiles", exact=True)).to_be_focused()
    expect(place.get_by_label("Profiles", exact=True)).to_have_attribute("aria-invalid", "true")


def test_models_are_switched_and_a_failure_is_told(master, server):
    page, place = master.page, go(master, "Models")
    expect(place.get_by_role("status").first).to_have_text("Selected: one, tiny.gguf")
    expect(page.get_by_role("region", name="Loaded")).to_contain_text("ready")
    (server.home / "models" / "broken.gguf").write_bytes(b"no model")
    page.reload()
    place.get_by_label("Model", exact=True).select_option("broken.gguf")
    expect(place).to_contain_text("This makes broken.gguf the model of the profile one in config.json.")
    page.get_by_role("button", name="Switch").click()
    expect(page.get_by_role("form", name="Serve another model").get_by_role("alert")).not_to_be_empty()
    expect(place.get_by_role("status").first).to_have_text("Selected: one, tiny.gguf")
    place.get_by_label("Model", exact=True).select_option("other.gguf")
    expect(place.get_by_label("Profile", exact=True)).to_have_value("two")
    page.get_by_role("button", name="Switch").click()
    expect(place).to_contain_text("other.gguf answers now, with the profile two.")
    expect(place.get_by_role("status").first).to_have_text("Selected: two, other.gguf")
    place.get_by_label("Profile", exact=True).select_option("one")
    expect(place.get_by_label("Model", exact=True)).to_have_value("tiny.gguf")
    page.get_by_role("button", name="Switch").click()
    expect(place.get_by_role("status").first).to_have_text("Selected: one, tiny.gguf")
    place.get_by_label("All of two").click()
    expect(page.get_by_role("region", name="Profiles of config.json")).to_contain_text('"model": "other.gguf"')


def test_a_model_is_got_from_a_gallery_and_by_its_address(master, server):
    page, place = master.page, go(master, "Models")
    place.get_by_text("Get a model", exact=True).click()
    place.get_by_label("Search the galleries").fill("gallery")
    expect(page.get_by_role("region", name="Galleries").locator("tbody tr")).to_have_count(1)
    page.get_by_role("button", name="Get fresh").click()
    expect(page.get_by_role("region", name="Being got")).to_contain_text("done")
    expect(page.get_by_role("region", name="Files", exact=True)).to_contain_text("fresh.gguf")
    place.get_by_label("Search the galleries").fill("damaged")
    page.get_by_role("button", name="Get damaged").click()
    expect(page.get_by_role("region", name="Being got").locator(".error")).to_contain_text("sha256")
    place.get_by_label("Address of a GGUF file").fill("file:///etc/passwd")
    page.get_by_role("button", name="Get it").click()
    expect(page.get_by_role("form", name="Get a file").get_by_role("alert")).to_contain_text("is no .gguf file")
    place.get_by_label("Address of a GGUF file").fill("huggingface://owner/repo/fresh.gguf")
    page.get_by_role("button", name="Get it").click()
    got = page.get_by_role("region", name="Being got").locator("tbody tr", has_text="fresh")
    expect(got.filter(has_text="done")).to_have_count(2)


def test_jobs_are_followed_and_cancelled(tab, server):
    tab.sign_in()
    ask = {"async": True, "session_id": None}
    done = tab.call("POST", "/answer", json={**ask, "prompt": "!echo <b>what came</b>"})["job_id"]
    dead = tab.call("POST", "/answer", json={**ask, "prompt": "x " * 9000})["job_id"]
    held = tab.call("POST", "/answer", json={**ask, "prompt": "!sleep 1 !tokens 900"})["job_id"]
    place = go(tab, "Jobs")
    expect(row(tab, done)).to_contain_text("done", timeout=30_000)      # its executor starts
    row(tab, done).get_by_text("Result", exact=True).click()
    expect(row(tab, done).locator("pre")).to_have_text("<b>what came</b>")
    tab.page.get_by_role("button", name=f"Cancel answer {held}").click()
    agree(tab, "Cancel the job")
    expect(row(tab, held)).to_contain_text("cancelled")
    place.get_by_label("Show", exact=True).select_option("cancelled")
    expect(row(tab, done)).to_have_count(0)
    expect(row(tab, held)).to_have_count(1)
    place.get_by_label("Show", exact=True).select_option("failed")
    expect(row(tab, held)).to_have_count(0)
    expect(row(tab, dead)).to_contain_text("context_length_exceeded")
    row(tab, dead).get_by_text("Why", exact=True).click()
    expect(row(tab, dead).locator("pre")).to_contain_text("of the context of 4096 tokens")
    assert not tab.wrong
    tab.page.route(f"{server.url}/jobs?*", lambda route: route.abort())
    expect(place.get_by_role("alert")).to_contain_text("This is not up to date")
    expect(row(tab, dead)).to_have_count(1)
    tab.page.unroute_all()
    expect(place.get_by_role("alert")).to_have_count(0)


def test_a_knowledge_base_is_made_filled_searched_shared_and_deleted(tab, server):
    tab.sign_in()
    page, place = tab.page, go(tab, "Knowledge")
    place.get_by_label("Name", exact=True).fill("handbook")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_role("heading", level=3).first).to_have_text("handbook")
    assert page.url.endswith("#knowledge/handbook")
    place.get_by_label("What", exact=True).select_option("text")
    place.get_by_label("Title").fill("Leave")
    place.get_by_label("Text", exact=True).fill("Who falls ill calls the office before nine.")
    page.get_by_role("button", name="Add").click()
    expect(row(tab, "Leave")).to_contain_text("done")
    place.get_by_label("What", exact=True).select_option("files")
    place.get_by_label("Files").set_input_files(
        [{"name": "rules.md", "mimeType": "text/markdown", "buffer": b"# Expenses\n\nForm ZX-81 is sent."}])
    page.get_by_role("button", name="Add").click()
    expect(row(tab, "rules.md")).to_contain_text("done")
    place.get_by_label("What", exact=True).select_option("url")
    place.get_by_label("Address").fill("http://127.0.0.1:1/private")
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("form", name="Add").get_by_role("alert")).to_be_visible()
    tab.wrong.clear()           # the browser tells of the 400
    place.get_by_label("Search this base").fill("ZX-81")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.get_by_role("list", name="Found").locator("li").first).to_contain_text("Form ZX-81 is sent.")
    page.get_by_role("button", name="Share").click()
    page.get_by_label("With").select_option("all")
    agree(tab, "Share")
    expect(place).to_contain_text("shared: with every key")
    assert [base["name"].partition("@")[0] for base in server.call("GET", "/knowledge").json()["bases"]] == ["handbook"]
    page.get_by_role("button", name="Read again…").click()
    page.get_by_label("By itself from now on").select_option("86400")
    agree(tab, "OK")
    expect(place).to_contain_text("read again: every day")
    page.get_by_role("button", name="Delete rules.md").click()
    agree(tab, "Delete")
    expect(row(tab, "rules.md")).to_have_count(0)
    page.locator("main.operate > .acts").get_by_role("button", name="Delete").click()
    agree(tab, "Delete")
    expect(place).to_contain_text("There are no knowledge bases")
    assert not tab.wrong


def test_the_load_is_drawn(master, server):
    server.answer("hello")
    go(master, "Load")
    plots = master.page.locator("figure.plot")
    expect(plots).to_have_count(9)
    expect(master.page.get_by_role("img", name=re.compile("^Requests running: now 0"))).to_be_visible()
    expect(master.page.get_by_role("img", name=re.compile("of 2 looks")).first).to_be_visible()
    server.answer("hello")
    first = master.page.get_by_role("img", name=re.compile(r"^Time to first token: now \d+(\.\d+)? s"))
    expect(first).to_be_visible(timeout=8000)
    expect(row(master, "one").first).to_contain_text("stop")
    assert "M" in (first.locator("path").get_attribute("d") or "")
    assert not master.wrong


JOB = {"type": "answer", "status": "error", "duration": 0, "code": "x", "created": "2026-01-01T00:00:00Z", "ended": "x",
       "started": None, "priority": "normal", "chunks_done": 0, "chunks_total": 0, "usage": None, "profile": None,
       "owner": PAYLOADS[2],
       "warnings": PAYLOADS, "model": PAYLOADS[0], "callback": {"state": "failed", "error": PAYLOADS[1]}}
BASE = {"owner": "x", "profile": PAYLOADS[0], "model": PAYLOADS[1], "shared": PAYLOADS, "sources": 1, "pending": 1,
        "documents": 1, "chunks": 1, "characters": 1, "refresh_seconds": None}
SOURCE = {"id": "1", "kind": "url", "state": "error", "next_try": None, "problems": PAYLOADS, "documents": 1,
          "indexed": 0, "chunks": 0, "added": "2026-01-01T00:00:00Z"}
LOADED = {"profiles": PAYLOADS, "state": "failed", "selected": True, "replicas": 2, "users": 1, "memory_bytes": 5000,
          "estimated_bytes": 1, "tokens_per_second": 1.0, "unload_seconds": None, "restarts": 1, "stats": None}
PROFILE = {"n_ctx": 1, "max_tokens": 1, "warnings": PAYLOADS}
ENTRY = {"license": PAYLOADS[0], "installed": False}
EVIL = {
    "/jobs?*": {"jobs": [{**JOB, "id": text, "result": text} for text in PAYLOADS], "next": None},
    "/knowledge": {"bases": [{**BASE, "name": text} for text in PAYLOADS]},
    "/knowledge/*": {**BASE, "name": PAYLOADS[1]},
    "/knowledge/*/sources": {"sources": [{**SOURCE, "id": text, "name": text, "error": text} for text in PAYLOADS]},
    "/models": {"models": PAYLOADS, "selected": PAYLOADS[0],
                "profiles": {text: {**PROFILE, "model": text} for text in PAYLOADS},
                "loaded": [{**LOADED, "model": text, "reason": text} for text in PAYLOADS]},
    "/models/jobs": {text: {"uuid": text, "gallery_element_name": text, "file_name": text, "error": text, "progress": 0,
                            "processed": True, "created": None} for text in PAYLOADS},
    "/models/available": [{**ENTRY, "name": text, "description": text} for text in PAYLOADS]}


def test_no_name_fires(master, server):
    """Names and errors are others' text: of keys, models, jobs, bases and sources."""
    for payload in PAYLOADS:
        server.make_key(name=payload, scopes=["answer"])
    for pattern, answer in EVIL.items():
        master.page.route(server.url + pattern, functools.partial(fulfil, answer))
    place = master.page.locator("main.operate")
    for view in ("keys", "models", "jobs", "knowledge", f"knowledge/{PAYLOADS[1]}"):
        master.page.evaluate("(view) => { location.hash = view; }", view)
        expect(place.locator("tbody tr").nth(9)).to_be_attached()
        place.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        expect(place).to_contain_text(PAYLOADS[1])
        assert master.page.locator(FOREIGN).count() == 0
    place.locator("*").evaluate_all("all => all.forEach((one) => one.dispatchEvent(new Event('mouseover')))")
    master.page.evaluate("(view) => { location.hash = view; }", PAYLOADS[2])
    expect(master.page.locator("#prompt")).to_be_visible()
    assert master.page.evaluate("window.fired") is None and not master.wrong


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_nothing_serious_is_in_the_way_of_anybody(master, server, scheme, width):
    master.page.emulate_media(color_scheme=scheme)
    master.page.set_viewport_size({"width": width, "height": 800})
    server.call("POST", "/knowledge", json={"name": "for-all"})
    server.call("POST", "/knowledge/for-all/documents", json={"text": "Ferries leave at nine.", "title": "Ferries"})
    for view in ("keys", "models", "jobs", "knowledge", "knowledge/for-all", "load"):
        master.page.evaluate("(view) => { location.hash = view; }", view)
        expect(master.page.locator("main.operate p[role=status]", has_text="Loading")).to_have_count(0)
        master.page.locator("main.operate details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        assert not serious(master), view
        inner = master.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert inner[0] <= inner[1], view
    server.make_key(name=f"seen in {scheme}")
    master.page.evaluate("location.hash = 'keys'")
    master.page.get_by_role("button", name=f"Rotate seen in {scheme}").press("Enter")
    expect(master.page.get_by_label("The old one goes on to work for")).to_be_focused()
    assert not serious(master)
    master.page.keyboard.press("Escape")
    expect(master.page.get_by_role("button", name=f"Rotate seen in {scheme}")).to_be_focused()
    server.call("DELETE", "/knowledge/for-all")


def test_each_file_has_a_name_of_its_own():
    names = [path.name for path in FOLDER.rglob("*") if path.is_file()]
    assert len(names) == len(set(names))        # the server knows them by it


def test_long_names_make_no_view_wider(master, server):
    long, name = "W" * 80, "x" * 200
    server.make_key(name=long, scopes=["answer"])
    path = f"/models/profiles/{name}"
    assert server.call("PUT", path, json={"model": "tiny.gguf"}).status_code == 201
    master.page.set_viewport_size({"width": 320, "height": 700})
    for view in ("keys", "models", "jobs", "load", f"models/edit/{name}"):
        master.page.evaluate("(view) => { location.hash = view; }", view)
        expect(master.page.locator("main.operate p[role=status]", has_text="Loading")).to_have_count(0)
        master.page.locator("main.operate details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        wide = master.page.locator("main.operate").evaluate("(node) => [node.scrollWidth, node.clientWidth]")
        assert wide[0] <= wide[1], view
    master.page.evaluate("location.hash = 'models'")
    master.page.get_by_role("button", name=f"Delete {name}").press("Enter")
    dialog = master.page.get_by_role("dialog")
    assert dialog.evaluate("(node) => node.scrollWidth <= node.clientWidth && node.clientWidth <= innerWidth")
    agree(master, "Delete")
    expect(master.page.get_by_role("region", name="Profiles of config.json")).to_be_focused()
    assert not master.wrong
