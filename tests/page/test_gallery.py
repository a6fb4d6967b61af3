"""Models that are being got, as the page shows them: whoever began it, after a reload, failed and cancelled."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from tests.conftest import MASTER, Server, make_home
from tests.hub_server import File, Hub
from tests.page.conftest import CONFIG
from tests.page.test_operate import agree, go, row

INDEX = """
- {name: slow, config_file: {parameters: {model: slow.gguf}},
   files: [{filename: slow.gguf, uri: "huggingface://owner/repo/slow.gguf"}]}
- {name: damaged, config_file: {parameters: {model: damaged.gguf}},
   files: [{filename: damaged.gguf, uri: "huggingface://owner/repo/damaged.gguf", sha256: ZERO}]}
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub() as hub:
        hub.plain["/index.yaml"] = File(INDEX.replace("ZERO", "0" * 64).encode())
        yield hub


@pytest.fixture(scope="module")
def server(tmp_path_factory, hub):
    home = make_home(tmp_path_factory.mktemp("gallery") / "home", CONFIG)
    data = (home / "models" / "tiny.gguf").read_bytes()
    for name in ("slow.gguf", "damaged.gguf"):
        hub.add("owner/repo", name, data)
    galleries = json.dumps([{"name": "test", "url": f"{hub.url}/index.yaml"}])
    server = Server(home, GALLERIES=galleries, HF_ENDPOINT=hub.url).start().ready()
    yield server
    server.end()


def test_what_others_get_is_followed_after_a_reload_and_cancelled(tab, server, hub):
    hub.evil("slow.gguf", stall=True, cut=len(hub.repos["owner/repo"]["slow.gguf"].data) // 2)
    for name in ("damaged", "slow"):
        assert server.call("POST", "/models/apply", json={"id": name}).status_code == 200
    tab.key = MASTER
    tab.sign_in()
    go(tab, "Models")
    page = tab.page
    for _ in range(2):
        bar = row(tab, "slow.gguf").get_by_role("progressbar", name="Progress of slow")
        expect(bar).to_be_visible()
        expect(row(tab, "slow.gguf")).to_contain_text(re.compile(r"processing [0-9.]+ k?B of [0-9.]+ k?B"))
        assert 0 < bar.evaluate("bar => bar.value") < 100
        expect(row(tab, "damaged").locator(".error")).to_contain_text("sha256")
        page.reload()
    page.get_by_role("button", name="Cancel slow").click()
    agree(tab, "Cancel the download")
    expect(row(tab, "slow.gguf")).to_contain_text("cancelling")
    hub.closing.set()                       # the hub goes on
    expect(page.get_by_role("region", name="Being got").locator(".error", has_text="cancelled")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel slow")).to_have_count(0)
    assert not tab.wrong


def test_who_may_only_look_sees_them_and_cancels_none(tab, server):
    tab.key = server.make_key(scopes=["answer", "models:read"])
    tab.sign_in()
    place = go(tab, "Models")
    place.get_by_text("Get a model", exact=True).click()
    expect(row(tab, "damaged").locator(".error")).to_be_visible()
    expect(place.get_by_role("button", name="Cancel damaged")).to_have_count(0)
    assert not tab.wrong


def test_two_clicks_get_one_model(tab, server):
    tab.key = MASTER
    tab.sign_in()
    sent = []
    tab.page.route("**/models/apply", lambda route: (sent.append(route.request.post_data_json), route.fulfill(
        json={"uuid": "x", "status": ""})))
    place = go(tab, "Models")
    place.get_by_text("Get a model", exact=True).click()
    tab.page.get_by_role("button", name="Get slow").dblclick()
    go(tab, "Jobs")
    assert sent == [{"id": "slow"}] and not tab.wrong
