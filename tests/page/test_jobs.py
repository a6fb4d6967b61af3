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
    place.get_by_label("Key", exact=True).select_option("a colleague")
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
