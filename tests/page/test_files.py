"""Files beside a prompt, some of which cannot be read."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.conftest import Server, make_home
from tests.page.conftest import CONFIG
from tests.page.test_talk import PLACES, give, state
from tests.tiny_wheel import write_bert

NOTES = rb"{\rtf1\ansi Whales sing in the sea.}"


DROPPED = """area => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File(["x"], "x.txt"));
    return ["dragover", "drop"].map(kind => {
        const event = new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true });
        area.dispatchEvent(event);
        return event.defaultPrevented;
    });
}"""


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
    tab.send("What do whales do?")
    expect(state(tab)).to_contain_text("broken.pdf")
    expect(tab.page.locator("#prompt")).to_have_value("What do whales do?")
    own = tab.page.get_by_label("the files of this conversation")
    expect(own).to_be_checked()
    with tab.page.expect_request(lambda one: one.url.endswith("/answer") and one.method == "POST") as asked:
        tab.page.get_by_role("button", name="Send").click()
    assert asked.value.post_data_json["knowledge"][0].startswith("files-web-")
    tab.done()
    expect(own).to_be_checked()


def test_a_file_dropped_anywhere_does_not_take_the_place_of_the_page(tab):
    tab.sign_in()
    for beside in ("header", "nav[aria-label=Conversations]", "body"):
        assert tab.page.locator(beside).first.evaluate(DROPPED) == [True, True]
    expect(tab.page.locator(".chips li")).to_have_count(0)
    assert tab.page.locator("#prompt").evaluate(DROPPED) == [True, True]
    expect(tab.page.locator(".chips li")).to_have_text("x.txt✕")
    picker = tab.page.locator("input[type=file]")
    picker.evaluate("field => document.body.append(field)")     # where the chat does not take it, as in Knowledge
    assert picker.evaluate(DROPPED) == [False, False]
