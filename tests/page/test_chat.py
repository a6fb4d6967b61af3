"""Talking on the page: signing in, answers that stream, conversations that are found again."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from services.web.page import FOLDER
from tests.page.conftest import Tab, turn


def names(tab):
    return tab.page.locator("nav .name").all_inner_texts()


def act(tab, what, at=0):
    tab.page.locator("nav .more").nth(at).click()
    tab.page.get_by_role("menuitem", name=what, exact=True).click()


def test_a_wrong_key_is_told_and_a_right_one_stays_in_its_tab(tab):
    tab.open()
    tab.page.fill("#key", "wrong")
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("alert")).to_contain_text("this key is unknown, revoked or expired")
    tab.sign_in()
    tab.page.reload()
    tab.page.wait_for_selector("#prompt")
    assert tab.page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0
    assert tab.key not in tab.page.content() and tab.key not in tab.page.url
    other = tab.page.context.new_page()
    other.goto(tab.server.url)
    other.wait_for_selector("#key")
    tab.page.get_by_role("button", name="Sign out").click()
    tab.page.wait_for_selector("#key")
    assert tab.page.evaluate("sessionStorage.length") == 0


def test_an_answer_streams_and_tells_who_gave_it(tab):
    tab.sign_in()
    expect(tab.page.locator(".model")).to_have_text("answered by tiny.gguf")
    tab.send("!sleep 0.03 !tokens 40")
    expect(tab.page.locator("article.assistant")).to_contain_text("w3")
    assert "w40" not in tab.page.locator("article.assistant").inner_text()
    tab.done()
    assert "w40" in tab.page.locator("article.assistant").inner_text()
    state = tab.page.locator(".state").inner_text()
    assert re.search(r"\d+ of 4096 tokens · \d+ cached, \d+ processed · [\d.]+ tokens/s", state), state
    assert not tab.wrong


def test_a_conversation_goes_on_and_is_found_again(tab):
    tab.sign_in()
    tab.ask("My name is Ada")
    assert "Ada" in tab.ask("What is my name?")
    expect(tab.page.locator("nav .name")).to_have_text(["My name is Ada"])
    tab.page.get_by_role("button", name="New conversation").click()
    assert "Ada" not in tab.ask("What is my name?")
    expect(tab.page.locator("nav .name")).to_have_text(["What is my name?", "My name is Ada"])
    tab.page.get_by_role("button", name="My name is Ada", exact=True).click()
    expect(tab.page.locator("article")).to_have_count(4)
    tab.page.fill("nav input", "ada name")
    expect(tab.page.locator("nav .name")).to_have_text(["My name is Ada"])


def test_stop_ends_an_answer_and_keeps_what_was_said(tab):
    tab.sign_in()
    tab.send("!sleep 0.05 !tokens 900")
    expect(tab.page.locator("article.assistant")).to_contain_text("w2")
    tab.page.get_by_role("button", name="Stop").click()
    tab.done()
    expect(tab.page.locator("article.assistant .hint")).to_have_text("This was cut short.")
    assert tab.ask("hello") == "You said: hello"


def test_again_and_edit_replace_what_followed(tab):
    tab.sign_in()
    tab.ask("one")
    tab.ask("two")
    tab.page.get_by_role("button", name="Edit").first.click()
    assert tab.page.input_value("#prompt") == "one"
    tab.send("three")
    tab.done()
    expect(tab.page.locator("article.user .text")).to_have_text(["three"])
    tab.page.get_by_role("button", name="Again").click()
    tab.done()
    expect(tab.page.locator("article.user .text")).to_have_text(["three"])
    session = next(iter(tab.call("GET", "/answer")))
    assert [turn["content"] for turn in tab.call("GET", f"/answer/{session}")["turns"]] == ["three", "You said: three"]


def test_what_was_typed_before_an_edit_or_another_try_is_not_lost(tab):
    tab.sign_in()
    tab.ask("one")
    prompt = tab.page.locator("#prompt")
    prompt.fill("a draft")
    tab.page.get_by_role("button", name="Edit").click()
    expect(prompt).to_have_value("one")
    tab.page.keyboard.press("Escape")
    expect(prompt).to_have_value("a draft")
    tab.page.get_by_role("button", name="Again").click()
    tab.done()
    expect(prompt).to_have_value("a draft")
    tab.page.get_by_role("button", name="Edit").click()
    prompt.fill("two")
    tab.page.keyboard.press("Enter")
    tab.done()
    expect(prompt).to_have_value("a draft")
    expect(tab.page.locator("article.user .text")).to_have_text(["two"])


def test_conversations_are_renamed_forked_exported_and_deleted(tab):
    tab.sign_in()
    tab.ask("hello")
    act(tab, "Rename")
    tab.page.get_by_role("textbox", name="New name").fill("<b>Mine</b>")
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("nav .name")).to_have_text(["<b>Mine</b>"])
    act(tab, "Fork")
    expect(tab.page.locator("nav .name")).to_have_text(["<b>Mine</b> (copy)", "<b>Mine</b>"])
    with tab.page.expect_download() as json_file:
        act(tab, "Export as JSON", 1)
    assert json_file.value.suggested_filename == "_b_Mine__b_.json"
    assert json.loads(json_file.value.path().read_text())["turns"][0]["content"] == "hello"
    with tab.page.expect_download() as markdown:
        act(tab, "Export as Markdown", 1)
    assert "## Question\n\nhello\n" in markdown.value.path().read_text()
    act(tab, "Delete")
    tab.page.get_by_role("button", name="Delete", exact=True).click()
    expect(tab.page.locator("nav .name")).to_have_count(1)
    assert len(tab.call("GET", "/answer")) == 1 and not tab.wrong


def test_who_answers_can_be_chosen(tab):
    tab.sign_in()
    tab.page.select_option("#who", "profile:two")
    expect(tab.page.locator(".model")).to_have_text("answered by other.gguf")
    assert tab.ask("hello") == "You said: hello"
    expect(tab.page.locator(".model")).to_have_text("answered by other.gguf")


def test_an_error_is_told_and_the_prompt_is_not_lost(tab):
    tab.sign_in()
    tab.send("!fail context_length_exceeded")
    tab.done()
    expect(tab.page.locator(".state")).to_contain_text("as the prompt asked for")
    assert tab.page.input_value("#prompt") == "!fail context_length_exceeded"


def test_a_key_that_ends_leads_back_to_the_door(tab):
    tab.sign_in()
    id = tab.call("GET", "/auth")["id"]
    assert tab.server.call("DELETE", f"/auth/keys/{id}").status_code in (200, 204)
    tab.send("hello")
    tab.page.wait_for_selector("#key")
    assert tab.page.evaluate("sessionStorage.length") == 0


def test_all_is_done_by_keyboard(tab):
    tab.sign_in()
    tab.ask("hello")
    tab.page.keyboard.press("Control+Shift+O")
    expect(tab.page.locator("article")).to_have_count(0)
    expect(tab.page.locator("#prompt")).to_be_focused()
    tab.page.locator("nav .more").focus()
    tab.page.keyboard.press("Enter")
    tab.page.keyboard.press("ArrowDown")
    expect(tab.page.get_by_role("menuitem", name="Fork")).to_be_focused()
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator(".pop")).to_have_count(0)
    expect(tab.page.locator("nav .more")).to_be_focused()


def test_rewind_makes_an_answer_the_last_one(tab):
    tab.sign_in()
    for prompt in ("one", "two", "three"):
        tab.ask(prompt)
    assert not tab.page.get_by_role("button", name="Rewind to answer 3").is_visible()
    tab.page.get_by_role("button", name="Rewind to answer 1").click()
    tab.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(tab.page.locator("article")).to_have_count(6)
    tab.page.get_by_role("button", name="Rewind to answer 1").click()
    tab.page.get_by_role("dialog").get_by_role("button", name="Rewind").click()
    expect(tab.page.locator("article")).to_have_count(2)
    expect(tab.page.locator("#prompt")).to_be_focused()
    tab.ask("four")
    [session] = tab.call("GET", "/answer")
    assert [turn["content"] for turn in tab.call("GET", f"/answer/{session}")["turns"]][::2] == ["one", "four"]
    assert not tab.wrong


@pytest.mark.parametrize("width", [390, 320])
def test_a_narrow_screen_has_the_list_behind_a_button(tab, width):
    """And nothing makes it scroll sideways, however wide what is shown."""
    word = "Donaudampfschifffahrtsgesellschaftskapitän" * 3
    wide = f"{word}\n\n```python\n{word} = 1\n```\n\n| {word} | b |\n|---|---|\n| 1 | {word} |"
    tab.page.set_viewport_size({"width": width, "height": 700})
    tab.shows("wide", [turn("user", word), {**turn("assistant", wide), "citations": [
        {"n": 1, "title": word, "url": "https://example.org", "cited": True}]}], word)
    tab.page.route("**/knowledge", lambda route: route.fulfill(json={"bases": [{"name": word}]}))
    tab.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [
        {"id": word, "file": f"{word}.gguf", "embedding": False}]}))
    tab.sign_in()
    opener, conversations = (tab.page.get_by_role(role, name="Conversations") for role in ("button", "navigation"))
    expect(conversations).to_be_hidden()
    opener.press("Enter")
    expect(conversations).to_be_visible()
    expect(opener).to_have_attribute("aria-expanded", "true")
    assert too_wide(tab) == []
    tab.page.get_by_role("button", name=word, exact=True).click()
    expect(conversations).to_be_hidden()
    expect(tab.page.locator("article")).to_have_count(2)
    tab.page.locator("input[type=file]").set_input_files([{"name": f"{word}.txt", "mimeType": "", "buffer": b"a"}])
    expect(tab.page.locator(".chips li")).to_have_count(1)
    expect(tab.page.locator(".model")).to_be_visible()
    for name in ("Send", "Sign out", "Add files", "Copy answer 1"):
        box = tab.page.get_by_role("button", name=name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, name
    assert too_wide(tab) == []


def too_wide(tab):
    """What scrolls sideways, but for what stands in a frame that does: code, tables, the views' names."""
    return tab.page.evaluate("""[...document.querySelectorAll("html, header, nav, main, .log, form, fieldset")]
        .filter((node) => node.scrollWidth > node.clientWidth && !node.matches(".places"))
        .map((node) => node.outerHTML)""")


def test_on_a_touch_screen_enter_is_a_new_line(browser, server):
    context = browser.new_context(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 700})
    tab = Tab(context.new_page(), server, server.make_key())
    tab.open()
    tab.page.fill("#key", tab.key)
    tab.page.get_by_role("button", name="Sign in").tap()
    tab.page.locator("#prompt").press_sequentially("one\ntwo")
    expect(tab.page.locator("#prompt")).to_have_value("one\ntwo")
    tab.page.get_by_role("button", name="Send").tap()
    expect(tab.page.locator("article.user .text")).to_have_text("one\ntwo", use_inner_text=True)
    tab.done()
    context.close()


def test_a_thousand_conversations_and_five_hundred_turns_stay_small(tab):
    tab.shows("long", [turn(role, f"{role} {n}") for n in range(250) for role in ("user", "assistant")], others=1000)
    tab.sign_in()
    tab.page.wait_for_selector("nav .name")
    assert tab.page.locator("nav .name").count() < 200
    tab.page.get_by_role("button", name="a name", exact=True).click()
    tab.page.wait_for_selector("article")
    assert tab.page.locator("article").count() == 60
    tab.page.get_by_role("button", name="Show 440 earlier").click()
    expect(tab.page.locator("article")).to_have_count(500)


def test_the_page_is_small_and_its_scripts_are_valid():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and not path.name.endswith(".LICENSE.txt")]
    assert sum(path.stat().st_size for path in files) < 300_000      # a browser asks for no licence
    vendored = {path.name for path in (FOLDER / "vendor").rglob("*")}
    assert {"marked.LICENSE.txt", "purify.LICENSE.txt", "highlight.LICENSE.txt"} <= vendored


def test_the_headers_let_nothing_in(server):
    response = server.call("GET", "/chat", "")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "require-trusted-types-for 'script'" in policy
    assert server.call("GET", "/page/../app.py", "").status_code in (401, 404)
    assert server.call("GET", "/page/nothing.js", "").status_code == 404
    home = server.call("GET", "/", "", allow_redirects=False)
    assert (home.status_code, home.headers["Location"]) == (302, "/chat")
