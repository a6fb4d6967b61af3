"""Jobs as an operator sees them: whose they are, and failed ones that are tried again."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from tests.conftest import MASTER, Server, make_home
from tests.page.conftest import CONFIG
from tests.page.test_operate import go, row

ASK = {"async": True, "session_id": None}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(make_home(tmp_path_factory.mktemp("jobs") / "home", CONFIG)).start().ready()
    yield server
    server.end()


def test_a_failed_job_of_somebody_is_tried_again(tab, server):
    colleague = server.make_key(name="a colleague", scopes=["answer"])
    failed = server.call("POST", "/answer", colleague, json={**ASK, "prompt": "!echo " + "x " * 9000}).json()["job_id"]
    other = server.call("POST", "/answer", json={**ASK, "prompt": "!echo well"}).json()["job_id"]
    tab.key = MASTER
    tab.sign_in()
    page, place = tab.page, go(tab, "Jobs")
    expect(row(tab, failed)).to_contain_text("context_length_exceeded")
    expect(row(tab, failed)).to_contain_text("a colleague")
    expect(row(tab, other)).to_contain_text("master")
    place.get_by_label("Key", exact=True).select_option(server.call("GET", "/auth", colleague).json()["id"])
    expect(row(tab, other)).to_have_count(0)
    place.get_by_label("Show", exact=True).select_option("failed")
    expect(row(tab, failed)).to_have_count(1)
    (server.home / "data" / "config.json").write_text(json.dumps({**CONFIG, "one": {**CONFIG["one"], "n_ctx": 32768}}))
    go(tab, "Models")
    expect(place).to_contain_text("32,768 tokens")
    go(tab, "Jobs")
    page.get_by_role("button", name=f"Try answer {failed} again").press("Enter")
    expect(page.get_by_text("It waits in the queue once more")).to_be_visible()
    expect(page.get_by_role("region", name="The newest first")).to_be_focused()
    expect(row(tab, failed)).to_contain_text("done")
    expect(page.get_by_role("button", name=f"Try answer {failed} again")).to_have_count(0)
    assert not tab.wrong


JOB = {"type": "summary", "status": "running", "duration": 0, "code": None, "created": "2026-01-01T00:00:00Z",
       "ended": None, "started": None, "priority": "normal", "chunks_done": 1, "chunks_total": 9, "usage": None,
       "profile": None, "owner": "0", "warnings": [], "model": None, "callback": None, "result": None}


def test_a_list_that_is_drawn_again_leaves_what_one_does_in_it(tab, server):
    """The selected text, what is opened, where the focus is; and it is not begun again where the server is away."""
    ended = {**JOB, "id": "ended", "status": "success", "ended": "x", "result": "a long result", "usage": {
        "prompt_tokens": 1, "completion_tokens": 1}}
    told = {"jobs": [{**JOB, "id": "going"}, ended], "next": None}
    tab.key = MASTER
    tab.sign_in()
    page = tab.page
    page.route("**/page/jobs.js", lambda route: route.abort())
    page.get_by_role("link", name="Jobs").click()
    expect(page.get_by_role("alert")).to_have_text("the server cannot be reached just now")
    page.unroute_all()
    page.route("**/jobs?*", lambda route: route.abort())
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", level=2, name="Jobs")).to_be_focused()
    expect(page.get_by_role("alert")).to_have_text("the server cannot be reached just now")
    expect(page.get_by_label("Show", exact=True)).to_have_count(0)
    page.unroute_all()
    page.route("**/jobs?*", lambda route: route.fulfill(json=told))
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", level=2, name="Jobs")).to_be_focused()
    page.get_by_label("Result of summary ended").click()
    page.get_by_role("button", name="Cancel summary going").focus()
    page.evaluate("getSelection().selectAllChildren(document.querySelector('main.operate tbody th'))")
    told["jobs"] = [{**JOB, "id": "going", "chunks_done": 2}, {**ended, "result": "a late result"}]
    expect(row(tab, "going")).to_contain_text("2 of 9")
    expect(row(tab, "ended").locator("pre")).to_have_text("a late result")
    expect(row(tab, "ended").locator("pre")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel summary going")).to_be_focused()
    assert page.evaluate("getSelection().toString()").split() == ["summary", "going"]
    told["jobs"] = [ended]
    expect(row(tab, "going")).to_have_count(0)
    expect(page.get_by_role("region", name="The newest first")).to_be_focused()
    told["jobs"] = [{**ended, "id": str(number)} for number in range(1000)]
    told["next"] = "more"
    for _ in range(19):
        page.get_by_role("button", name="Show more").press("Enter")
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    expect(page.get_by_role("region", name="The newest first")).to_be_focused()
    tab.wrong.clear()           # the browser tells what did not load
