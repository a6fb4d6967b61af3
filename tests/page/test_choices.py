"""Who may answer and what may be seen: what is learnt while the page is open, keys with few rights, and leaving."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from tests.page.conftest import ELSEWHERE, PATIENCE


def profiles(tab):
    return tab.page.locator("#who optgroup[label=Profiles] option")


def go(tab, title):
    tab.page.get_by_role("navigation", name="Views").get_by_role("link", name=title, exact=True).click()


def has(tab, files, bases):
    """What the page finds from now on: files of profiles, and names of knowledge bases."""
    tab.page.unroute_all()
    tab.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [
        {"id": name, "file": file, "embedding": False} for name, file in files.items()]}))
    tab.page.route("**/knowledge", lambda route: route.fulfill(json={"bases": [{"name": name} for name in bases]}))


def test_what_is_new_is_there_when_the_chat_is_seen_again(tab):
    has(tab, {"one": "tiny.gguf", "two": "other.gguf"}, ["notes", "plans"])
    tab.sign_in()
    tab.page.select_option("#who", "profile:two")
    tab.page.get_by_label("plans").check()
    tab.page.fill("#prompt", "half a que")
    has(tab, {"one": "tiny.gguf", "three": "third.gguf", "two": "new.gguf"}, ["more", "plans"])
    go(tab, "Jobs")
    go(tab, "Chat")
    expect(tab.page.locator(".model")).to_have_text("answered by new.gguf")
    assert profiles(tab).all_inner_texts() == ["one", "three", "two"] and tab.page.input_value("#who") == "profile:two"
    expect(tab.page.get_by_label("plans")).to_be_checked()
    expect(tab.page.get_by_label("more")).not_to_be_checked()
    assert tab.page.get_by_label("notes").count() == 0 and tab.page.input_value("#prompt") == "half a que"
    has(tab, {"one": "tiny.gguf"}, ["plans"])
    tab.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(tab.page.locator("#said")).to_contain_text("two is here no longer: one answers now")
    expect(tab.page.locator(".model")).to_have_text("answered by tiny.gguf")
    expect(tab.page.get_by_label("plans")).to_be_checked()


def test_an_answer_of_another_model_than_told_has_the_page_look_again(tab):
    has(tab, {"one": "before.gguf", "two": "other.gguf"}, [])
    tab.sign_in()
    expect(tab.page.locator(".model")).to_have_text("answered by before.gguf")
    has(tab, {"one": "tiny.gguf", "two": "other.gguf", "three": "x.gguf"}, [])
    tab.ask("hello")
    expect(profiles(tab)).to_have_count(3)
    expect(tab.page.locator(".model")).to_have_text("answered by tiny.gguf")


@pytest.mark.parametrize("own, offered", [(None, "the server's profile"), (["two"], "two")])
def test_a_key_that_may_only_ask_is_told_the_model_by_its_answer(tab, server, own, offered):
    tab.key = server.make_key(scopes=["answer"], **({"profiles": own} if own else {}))
    tab.sign_in()
    expect(profiles(tab)).to_have_text([offered])
    expect(tab.page.locator(".model")).to_have_text("its answer tells the model")
    assert tab.ask("hello") == "You said: hello"
    expect(tab.page.locator(".model")).to_have_text(f"answered by {'other' if own else 'tiny'}.gguf")
    tab.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    assert tab.ask("again") == "You said: again" and not tab.wrong


def test_a_key_that_may_not_ask_sees_what_it_may(tab, server):
    tab.key = server.make_key(scopes=["keys"])
    tab.open()
    tab.page.fill("#key", tab.key)
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("main")).to_contain_text("This key lacks the scope answer")
    go(tab, "Keys")
    expect(tab.page.locator("main.operate table").first).to_be_visible()
    assert tab.page.locator("#who, #prompt").count() == 0 and not tab.wrong


def test_escape_stops_an_answer_only_where_it_is_meant(tab):
    tab.sign_in()
    tab.ask("hello")
    tab.send("!sleep 0.05 !tokens 1500")
    answer = tab.page.locator("article.assistant").last
    expect(answer).to_contain_text("w2")
    tab.page.locator("nav .more").click()
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator(".pop")).to_have_count(0)
    tab.page.locator("nav .more").click()
    tab.page.get_by_role("menuitem", name="Rename").click()
    tab.page.keyboard.press("Escape")
    expect(tab.page.get_by_role("dialog")).to_have_count(0)
    go(tab, "Knowledge")
    tab.page.keyboard.press("Escape")
    go(tab, "Chat")
    expect(tab.page.get_by_role("button", name="Stop")).to_be_visible()
    shown = int(re.findall(r"w(\d+)", answer.inner_text())[-1])
    expect(answer).to_contain_text(f"w{shown + 2}")
    tab.page.locator("#prompt").press("Escape")
    expect(answer.locator("xpath=//*[@class='hint']").last).to_have_text("This was cut short.")
    tab.done()
    assert not tab.wrong


def test_a_question_that_was_stopped_before_its_answer_takes_its_own_place(tab):
    tab.sign_in()
    tab.send("!wait 3 !tokens 3")
    tab.page.get_by_role("button", name="Stop").click()
    tab.done()
    expect(tab.page.locator("#prompt")).to_have_value("!wait 3 !tokens 3")
    assert tab.ask("shorter") == "You said: shorter"
    expect(tab.page.locator("article.user .text")).to_have_text(["shorter"])
    [session] = tab.call("GET", "/answer")
    turns = tab.call("GET", f"/answer/{session}")["turns"]
    assert [turn["content"] for turn in turns] == ["shorter", "You said: shorter"]


def test_those_used_last_come_first_also_after_a_reload(tab):
    tab.sign_in()
    for session, prompt in ((10, "a number"), (9, "one before it"), ("name", "a name")):
        tab.server.answer(prompt, session, tab.key)
    tab.server.answer("again", 10, tab.key)
    tab.page.reload()
    expect(tab.page.locator("nav .name")).to_have_text(["a number", "a name", "one before it"])
    tab.page.get_by_role("button", name="one before it", exact=True).click()
    tab.ask("and me?")
    for _ in range(2):
        expect(tab.page.locator("nav .name")).to_have_text(["one before it", "a number", "a name"])
        tab.page.reload()


def test_who_leaves_leaves_nothing(tab, server):
    """W6: nor does the way back lead to it, nor an answer that was under way."""
    tab.sign_in()
    tab.ask("my secret")
    go(tab, "Jobs")
    go(tab, "Chat")
    tab.send("!sleep 0.05 !tokens 900")
    expect(tab.page.locator("article.assistant").last).to_contain_text("w2")
    tab.page.get_by_role("button", name="Sign out").click()
    expect(tab.page.locator("#key")).to_be_focused()
    for back in (tab.page.go_back, tab.page.go_back, tab.page.go_forward, tab.page.reload):
        back()
        expect(tab.page.locator("#key")).to_be_visible()
        assert "secret" not in tab.page.content() and "w2" not in tab.page.content()
        assert tab.page.evaluate("sessionStorage.length + localStorage.length") == 0
    expect(tab.page.get_by_role("alert")).to_have_text("")
    tab.key = server.make_key()
    tab.page.fill("#key", tab.key)
    tab.page.keyboard.press("Enter")
    go(tab, "Chat")
    assert tab.ask("hello") == "You said: hello"
    expect(tab.page.locator("nav .name")).to_have_text(["hello"])
    assert not tab.wrong


def test_over_plain_http_as_on_a_phone_all_works(browser, server):
    """There browsers offer neither randomUUID nor the clipboard, and what cannot be copied must not be lost."""
    context = browser.new_context(viewport={"width": 390, "height": 700})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"http://{ELSEWHERE}:{server.url.rpartition(':')[2]}/")
    assert page.evaluate("[isSecureContext, typeof crypto.randomUUID, typeof navigator.clipboard]") == [
        False, "undefined", "undefined"]
    page.fill("#key", server.make_key(scopes=["answer", "models:read", "keys"]))
    page.keyboard.press("Enter")
    page.fill("#prompt", "!echo ```py\\nx = 1\\n```")
    page.keyboard.press("Enter")
    expect(page.locator("article.assistant .text")).to_contain_text("x = 1")
    page.get_by_role("button", name="Copy answer 1").click()
    expect(page.locator("#said")).to_have_text("Copied")
    page.locator("#prompt").press("Control+v")
    expect(page.locator("#prompt")).to_have_value(re.compile("```py"))
    page.get_by_role("link", name="Keys").click()
    page.locator("summary", has_text="Make a key").click()
    expect(page.get_by_role("button", name="Make the key")).to_be_visible()
    assert not wrong, json.dumps(wrong)
    context.close()
