"""Files beside a prompt, some of which cannot be read."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.conftest import Server, make_home
from tests.page.conftest import CONFIG
from tests.page.test_talk import PLACES, give, state
from tests.tiny_wheel import write_bert

NOTES = rb"{\rtf1\ansi Whales sing in the sea.}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("files") / "home", {**CONFIG, "words": PLACES["words"]})
    write_bert(home / "models" / "words.gguf")
    server = Server(home).start().ready()
    yield server
    server.end()


def test_beside_a_file_that_cannot_be_read_the_others_are_answered_from(tab):
    tab.sign_in()
    give(tab, ("notes.rtf", NOTES), ("broken.pdf", b"%PDF-1.4 garbage"))
    tab.page.fill("#prompt", "What do whales do?")
    tab.page.keyboard.press("Enter")
    expect(state(tab)).to_contain_text("broken.pdf")
    expect(tab.page.locator("#prompt")).to_have_value("What do whales do?")
    own = tab.page.get_by_label("the files of this conversation")
    expect(own).to_be_checked()
    with tab.page.expect_request(lambda one: one.url.endswith("/answer") and one.method == "POST") as asked:
        tab.page.get_by_role("button", name="Send").click()
    assert asked.value.post_data_json["knowledge"][0].startswith("files-web-")
    tab.done()
    expect(own).to_be_checked()
