"""What can come between a question and its answer: files, waiting, thinking, errors, other tabs, a restart."""

from __future__ import annotations

import io
import json
import threading
import zipfile

import pytest
from playwright.sync_api import expect

from tests.conftest import MASTER, Server, make_home
from tests.page.conftest import CONFIG, turn
from tests.tiny_wheel import write_bert

PLACES = {"narrow": {"model": "other.gguf", "parallel": 1},
          "words": {"model": "words.gguf", "embedding": True, "n_ctx": 64}}
DONE = {"done": True, "result": "It is 9.", "session_id": "x", "profile": "one", "model": "tiny.gguf",
        "finish_reason": "stop", "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100,
                                           "prompt_tokens_details": {"cached_tokens": 40, "processed_tokens": 50}},
        "context": {"window": 400, "k": 3, "turns_used": 2, "turns_dropped": 5},
        "timings": {"queue_ms": 0, "prefill_ms": 1, "decode_ms": 1000}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("talk") / "home", {**CONFIG, **PLACES})
    write_bert(home / "models" / "words.gguf")
    server = Server(home, SESSION_WAIT="0.2", DRAIN_TIMEOUT="0.2").start().ready()
    yield server
    server.end()


def answers(tab, *events):
    """Has the page find these events in the place of an answer."""
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    tab.page.route("**/answer", lambda route: route.fulfill(body=body, content_type="text/event-stream")
                   if route.request.method == "POST" else route.fallback())


def give(tab, *files):
    tab.page.locator("input[type=file]").set_input_files(
        [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files])


def state(tab):
    return tab.page.locator(".state")


def test_a_text_is_quoted_after_the_prompt_in_a_fence_it_cannot_end(tab):
    tab.sign_in()
    give(tab, ("notes.md", b"# Notes\n```\ncode\n```\n"), ("more.txt", "süß".encode()))
    expect(tab.page.locator(".chips li")).to_have_count(2)
    tab.page.get_by_role("button", name="Leave out more.txt").click()
    tab.ask("What is it about?")
    expect(tab.page.locator(".chips li")).to_have_count(0)
    shown = tab.page.locator("article.user .text").inner_text()
    assert shown == "What is it about?\n\nnotes.md:\n````\n# Notes\n```\ncode\n```\n````"
    expect(tab.page.locator("nav .name").first).to_have_text("What is it about?")


def test_files_can_be_dropped(tab):
    tab.sign_in()
    data = tab.page.evaluate_handle("() => { const data = new DataTransfer(); "
                                    "data.items.add(new File(['dropped'], 'a.txt')); return data; }")
    tab.page.locator(".log").dispatch_event("dragover", {"dataTransfer": data})
    expect(tab.page.locator("main.dropping")).to_have_count(1)
    tab.page.locator(".log").dispatch_event("drop", {"dataTransfer": data})
    expect(tab.page.locator(".chips li")).to_contain_text("a.txt")
    expect(tab.page.locator("main.dropping")).to_have_count(0)


@pytest.mark.parametrize("name, data, why", [
    ("a.bin", b"\xff\xfe\x00", "no text in UTF-8"), ("a.dat", b"a\0b", "no text in UTF-8"),
    ("a.txt", b"x" * 205_000, "has 201 KB; a text may have 200")])
def test_what_cannot_go_along_is_told(tab, name, data, why):
    tab.sign_in()
    give(tab, (name, data))
    expect(tab.page.locator("#said .error")).to_contain_text(why)
    expect(tab.page.locator(".chips li")).to_have_count(0)


def test_a_document_goes_into_a_base_of_the_conversation_and_ends_with_it(tab):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("ferry.txt", "The ferry to Sylt leaves at nine.")
    tab.sign_in()
    give(tab, ("plans.zip", packed.getvalue()))
    tab.ask("When does the ferry leave?")
    expect(tab.page.locator(".citations li")).to_contain_text("ferry")
    expect(tab.page.get_by_label("the files of this conversation")).to_be_checked()
    [base] = tab.call("GET", "/knowledge")["bases"]
    assert base["name"].startswith("files-web-") and base["documents"] == 1
    tab.page.get_by_role("button", name="New conversation").click()
    expect(tab.page.get_by_label("the files of this conversation")).to_be_hidden()
    tab.page.locator("nav .name").first.click()
    expect(tab.page.get_by_label("the files of this conversation")).to_be_checked()
    tab.page.locator("nav .more").first.click()
    tab.page.get_by_role("menuitem", name="Delete").click()
    tab.page.get_by_role("button", name="Delete", exact=True).click()
    expect(tab.page.locator("nav .name")).to_have_count(0)
    expect(tab.page.locator("article")).to_have_count(0)
    assert tab.call("GET", "/knowledge")["bases"] == [] and not tab.wrong


def test_a_base_that_is_ticked_is_answered_from(tab):
    tab.call("POST", "/knowledge", json={"name": "ferries"})
    tab.call("POST", "/knowledge/ferries/documents", json={"title": "Plan", "text": "The ferry leaves at nine."})
    while tab.call("GET", "/knowledge/ferries")["documents"] == 0:
        tab.page.wait_for_timeout(50)
    tab.sign_in()
    tab.ask("When does the ferry leave?")
    expect(tab.page.locator(".citations li")).to_have_count(0)
    tab.page.get_by_label("ferries").check()
    tab.ask("When does the ferry leave?")
    expect(tab.page.locator(".citations li")).to_contain_text("Plan")
    tab.server.call("DELETE", "/knowledge/ferries", tab.key)
    assert not tab.wrong


def test_without_an_embedding_profile_a_document_is_refused_with_what_to_do(tab):
    tab.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [
        {"id": "one", "file": "tiny.gguf", "embedding": False}]}))
    tab.sign_in()
    give(tab, ("report.PDF", b"%PDF-1.4"))
    expect(tab.page.locator("#said .error")).to_contain_text("models pull minilm")


def test_thoughts_are_folded_steps_are_told_and_the_window_is_shown(tab):
    answers(tab, {"step": "Looking at 2 passages"}, {"reasoning": "3 times "}, {"reasoning": "<b>3</b>"},
            {"delta": "It is"}, {"delta": " 9."}, DONE)
    tab.sign_in()
    assert tab.ask("What is 3 times 3?") == "It is 9."
    expect(tab.page.locator(".steps li")).to_have_text("Looking at 2 passages")
    thoughts = tab.page.locator(".reasoning")
    expect(thoughts).not_to_have_attribute("open", "")
    thoughts.locator("summary").click()
    expect(thoughts.locator("div")).to_have_text("3 times <b>3</b>")
    meter = tab.page.get_by_label("Context window in use")
    assert (meter.get_attribute("value"), meter.get_attribute("max")) == ("100", "400")
    expect(state(tab)).to_contain_text("100 of 400 tokens · 40 cached, 50 processed · 10.0 tokens/s · "
                                       "5 earlier turns left out")


def test_the_place_in_the_queue_is_told(tab):
    tab.sign_in()
    tab.page.select_option("#who", "profile:narrow")
    others = threading.Thread(target=lambda: list(tab.server.stream("!sleep 0.05 !tokens 30", profile="narrow")))
    others.start()
    tab.page.wait_for_timeout(300)
    tab.send("hello")
    expect(state(tab)).to_contain_text("Waiting: number 1 in the queue")
    tab.done()
    others.join()
    expect(tab.page.locator("article.assistant .text")).to_have_text("You said: hello")


def test_the_choice_stays_for_the_tab_and_a_personality_greets(tab):
    tab.page.route("**/personalities", lambda route: route.fulfill(json={"personalities": [
        {"name": "Ada", "model": "tiny.gguf", "description": "", "intro_dialogue": ["Good day.", "<b>Ask.</b>"]}]}))
    tab.sign_in()
    expect(tab.page.locator("#who")).to_have_value("profile:one")       # the selected one
    tab.page.select_option("#who", "personality:Ada")
    expect(tab.page.locator(".greeting")).to_have_text("Good day. <b>Ask.</b>")
    tab.page.select_option("#who", "profile:two")
    expect(tab.page.locator(".greeting")).to_have_text("What would you like to know?")
    tab.page.reload()
    expect(tab.page.locator("#who")).to_have_value("profile:two")


def test_long_prompts_are_folded_and_whole(tab):
    text = "word " * 3000
    tab.shows("long", [turn("user", text), turn("assistant", "ok")])
    tab.sign_in()
    tab.page.locator("nav .name").click()
    shown = tab.page.locator("article.user .text")
    assert len(shown.inner_text()) < 5000
    tab.page.get_by_role("button", name="Show all of question 1").click()
    assert shown.text_content() == text


def test_an_error_in_the_middle_keeps_what_was_said(tab):
    tab.sign_in()
    tab.send("!tokens 200 !sleep 0.01 !die SIGKILL 20")
    tab.done()
    expect(tab.page.locator("article.assistant .text")).to_contain_text("w5")
    expect(tab.page.locator("article.assistant .hint")).to_have_text("This was cut short.")
    assert tab.page.input_value("#prompt") == "" and state(tab).inner_text()
    tab.server.ready()
    assert tab.ask("hello") == "You said: hello"


def test_a_question_that_failed_is_replaced_when_it_is_sent_again(tab):
    tab.sign_in()
    tab.send("!fail context_length_exceeded")
    tab.done()
    tab.send("shorter")
    expect(tab.page.locator("article.assistant .text")).to_have_text("You said: shorter")
    tab.done()
    session = next(iter(tab.call("GET", "/answer")))
    turns = tab.call("GET", f"/answer/{session}")["turns"]
    assert [turn["content"] for turn in turns if turn["role"] == "user"] == ["shorter"]


def test_two_tabs_in_one_conversation(tab):
    tab.sign_in()
    tab.ask("hello")
    [session] = tab.call("GET", "/answer")
    other = tab.server.stream("!sleep 0.05 !tokens 20", session, tab.key)
    next(other)
    tab.send("and I?")
    tab.done()
    expect(state(tab)).to_contain_text("Another tab or program is being answered in this conversation.")
    assert tab.page.input_value("#prompt") == "and I?"
    list(other)
    tab.page.keyboard.press("Enter")
    tab.done()
    assert tab.call("GET", f"/answer/{session}")["turns"][4]["content"] == "and I?"
    tab.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(tab.page.locator("article")).to_have_count(6)


def test_going_back_is_refused_where_another_tab_went_on(tab):
    tab.sign_in()
    tab.ask("one")
    [session] = tab.call("GET", "/answer")
    tab.server.call("POST", f"/answer/{session}/rewind", tab.key, json={"to": 0})
    tab.server.answer("two", session, tab.key)
    tab.page.get_by_role("button", name="Again: answer 1").click()
    expect(state(tab)).to_contain_text("has changed elsewhere")
    assert [turn["content"] for turn in tab.call("GET", f"/answer/{session}")["turns"]] == ["two", "You said: two"]


def test_a_restart_in_the_middle_of_an_answer_loses_nothing(tab, server):
    """W8: what the server kept is shown again, and the page writes no history back."""
    tab.sign_in()
    tab.ask("hello")
    sent = []
    tab.page.on("request", lambda request: sent.append(request) if request.method != "GET" else None)
    tab.send("!sleep 0.05 !tokens 900")
    expect(tab.page.locator("article.assistant").last).to_contain_text("w5")
    server.environment["PORT"] = server.url.rpartition(":")[2]
    server.stop()
    server.start().ready()
    tab.done()
    expect(tab.page.locator("article")).to_have_count(4)
    expect(tab.page.locator("article.assistant .hint")).to_have_text("This was cut short.")
    [session] = tab.call("GET", "/answer")
    kept = [turn["content"] for turn in tab.call("GET", f"/answer/{session}")["turns"]]
    assert kept[:2] == ["hello", "You said: hello"] and "w5" in kept[3]
    assert tab.page.locator("article.assistant .text").last.inner_text() == kept[3]
    assert tab.ask("hello again") == "You said: hello again"
    assert all({*request.post_data_json} <= {"prompt", "session_id", "profile", "personality", "stream"}
               for request in sent if request.url.endswith("/answer"))
    assert all(request.url.endswith("/answer") for request in sent)


def test_the_first_steps_are_open_for_the_master_and_lead_to_an_answer(tab, server):
    mine, tab.key = tab.key, MASTER
    tab.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [
        {"id": "one", "file": "starter.gguf", "embedding": False}]}))
    tab.sign_in()
    steps = tab.page.locator(".first")
    expect(steps).to_have_attribute("open", "")
    curl = steps.get_by_label("Curl command", exact=True).input_value()
    assert f"{server.url}/answer" in curl and "YOUR-KEY" in curl and tab.key not in curl
    assert "models pull" in steps.get_by_label("Pull command", exact=True).input_value()
    steps.get_by_label("Name of the key").fill("for <b>me</b>")
    steps.get_by_role("button", name="Make a key").click()
    made = steps.get_by_label("New key", exact=True).input_value()
    assert server.call("GET", "/auth", made).json()["name"] == "for <b>me</b>" and made not in tab.page.content()
    steps.get_by_role("button", name="Copy new key").click()
    expect(tab.page.locator("#said")).to_contain_text("Copied")
    assert tab.page.evaluate("navigator.clipboard.readText()") == made
    steps.get_by_role("button", name="Ask it for a capital").click()
    expect(tab.page.locator("#prompt")).to_have_value("What is the capital of France?")
    expect(tab.page.locator("#who")).to_have_value("profile:one")
    tab.key = mine
    tab.page.get_by_role("button", name="Sign out").click()
    tab.page.fill("#key", mine)
    tab.page.keyboard.press("Enter")
    expect(steps).not_to_have_attribute("open", "")
    expect(steps.get_by_label("Name of the key")).to_have_count(0)
    expect(steps.get_by_label("Curl command", exact=True)).to_have_count(1)
