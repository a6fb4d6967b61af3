"""What happens at the same time: answers, other conversations, other keys, slow and late replies."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.page.conftest import turn

LONG = "!sleep 0.02 !tokens 900"
SEEN = "document.dispatchEvent(new Event('visibilitychange'))"
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"


def start(tab, prompt=LONG):
    """An answer that streams."""
    tab.send(prompt)
    expect(tab.page.locator("article.assistant").last).to_contain_text("w5")


def hold(tab, url, method="GET"):
    """The requests that wait for their reply, from now on."""
    held = []
    tab.page.route(url, lambda route: held.append(route) if route.request.method == method else route.fallback())
    return held


def reply(tab, held, **answer):
    """Gives the first of them its reply, and the page time to take it."""
    with tab.page.expect_response(held[0].request.url):
        held[0].fulfill(**answer)
    tab.page.evaluate(DRAWN)


def until(tab, held):
    for _ in range(3000):
        if held:
            return
        tab.page.wait_for_timeout(10)
    raise AssertionError("nothing was sent")


def new(tab):
    tab.page.get_by_role("button", name="New conversation").click()


def test_the_conversation_that_was_chosen_last_is_shown(tab):
    """However late the others come; meanwhile nothing is sent to the wrong one."""
    tab.shows("quick", [turn("user", "q"), turn("assistant", "quick")], others=1)
    held = hold(tab, "**/answer/s0")
    tab.sign_in()
    tab.page.get_by_role("button", name="Conversation 0", exact=True).click()
    until(tab, held)
    tab.send("for which one?")
    expect(tab.page.locator("article")).to_have_count(0)
    tab.page.get_by_role("button", name="a name", exact=True).click()
    expect(tab.page.locator("article.assistant .text")).to_have_text("quick")
    reply(tab, held, json={"turns": [turn("user", "s"), turn("assistant", "slow")]})
    expect(tab.page.locator("article.assistant .text")).to_have_text("quick")
    expect(tab.page.locator("nav [aria-current=true]")).to_have_text("a name")
    expect(tab.page.locator("#prompt")).to_have_value("for which one?")


def test_a_conversation_that_cannot_be_opened_leaves_the_one_that_is_shown(tab):
    tab.shows("here", [turn("user", "q"), turn("assistant", "here")], others=1)
    tab.page.route("**/answer/s0", lambda route: route.fulfill(status=404, json={"error": {"message": "No such"}}))
    tab.sign_in()
    tab.page.get_by_role("button", name="a name", exact=True).click()
    expect(tab.page.locator("article.assistant .text")).to_have_text("here")
    tab.page.get_by_role("button", name="Conversation 0", exact=True).click()
    expect(tab.page.locator("#said")).to_contain_text("No such")
    expect(tab.page.locator("nav [aria-current=true]")).to_have_text("a name")


def test_who_leaves_a_streaming_answer_leaves_its_question_too(tab):
    tab.sign_in()
    start(tab)
    new(tab)
    tab.done()
    expect(tab.page.locator("#prompt")).to_have_value("")
    expect(tab.page.locator("article")).to_have_count(0)
    expect(tab.page.locator("nav .name")).to_have_count(1)
    expect(tab.page.locator("nav [aria-current=true]")).to_have_count(0)
    assert tab.ask("hello") == "You said: hello"
    expect(tab.page.locator("nav [aria-current=true]")).to_have_text("hello")
    assert len(tab.call("GET", "/answer")) == 2 and not tab.wrong


def test_what_is_being_answered_is_not_edited_and_a_reader_is_left_where_he_reads(tab):
    tab.sign_in()
    start(tab, "!sleep 0.005 !tokens 1900")
    for name in ("Edit question 1", "Again: answer 1"):
        expect(tab.page.get_by_role("button", name=name)).to_have_count(0)
    log = tab.page.locator(".log")
    tab.page.wait_for_function("() => { const log = document.querySelector('.log');"
                               " return log.scrollHeight > log.clientHeight + 200; }")
    log.evaluate("(log) => { log.scrollTop = 0; }")
    tab.page.evaluate(DRAWN)
    tab.page.keyboard.press("Escape")
    tab.done()
    assert log.evaluate("(log) => log.scrollTop") == 0
    expect(tab.page.get_by_role("button", name="Edit question 1")).to_have_count(1)
    assert not tab.wrong


def test_a_file_that_comes_while_an_answer_streams_goes_with_the_next(tab):
    tab.sign_in()
    start(tab)
    tab.page.locator("input[type=file]").set_input_files([{"name": "next.txt", "mimeType": "", "buffer": b"next"}])
    expect(tab.page.locator(".chips li")).to_have_count(1)
    tab.page.get_by_role("button", name="Stop").click()
    tab.done()
    expect(tab.page.locator(".chips li")).to_contain_text("next.txt")


def test_a_refused_question_is_not_lost_where_the_next_is_typed(tab):
    """And the page says when to try again."""
    tab.sign_in()
    held = hold(tab, "**/answer", "POST")
    tab.send("first")
    until(tab, held)
    tab.page.fill("#prompt", "second")
    held[0].fulfill(status=503, headers={"Retry-After": "7"}, json={"error": {"message": "the queue is full"}})
    tab.done()
    expect(tab.page.locator(".state")).to_have_text("the queue is full (try again in 7 s)")
    expect(tab.page.locator("#prompt")).to_have_value("first\n\nsecond")


def test_turns_that_come_late_take_none_away(tab):
    tab.sign_in()
    tab.ask("one")
    [id] = tab.call("GET", "/answer")
    kept = tab.call("GET", f"/answer/{id}")
    held = hold(tab, f"**/answer/{id}")
    tab.page.evaluate(SEEN)
    until(tab, held)
    tab.ask("two")
    reply(tab, held, json=kept)
    expect(tab.page.locator("article")).to_have_count(4)


def test_the_next_key_sees_and_sends_nothing_of_the_last(tab):
    """Also where the last one's requests were still under way."""
    tab.sign_in()
    tab.ask("a secret")
    held, [id] = hold(tab, "**/knowledge"), tab.call("GET", "/answer")
    tab.page.evaluate(SEEN)
    until(tab, held)
    tab.page.route("**/knowledge", lambda route: route.continue_())
    tab.page.get_by_role("button", name="Sign out").click()
    other = tab.server.make_key()
    sent = []
    tab.page.on("request", lambda request: sent.append(request))
    tab.page.fill("#key", other)
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("nav .end")).to_have_text("No conversations yet")
    reply(tab, held, json={"bases": [{"name": "secret"}]})
    assert tab.ask("hello") == "You said: hello"
    expect(tab.page.locator("nav .name")).to_have_text(["hello"])
    assert not [request.url for request in sent if id in request.url or "secret" in (request.post_data or "")]
    assert "secret" not in tab.page.content() and not tab.wrong


def test_signing_in_is_done_once(tab):
    tab.open()
    held = hold(tab, "**/auth")
    tab.page.fill("#key", tab.key)
    tab.page.keyboard.press("Enter")
    until(tab, held)
    tab.page.keyboard.press("Enter")
    held[0].fallback()
    expect(tab.page.locator("#prompt")).to_be_visible()
    assert len(held) == 1


@pytest.mark.parametrize("text", [">" * 20_000, "> " * 5_000 + "a"])
def test_what_no_parser_takes_is_shown_as_text(tab, text):
    tab.shows("deep", [turn("user", "q"), turn("assistant", text)])
    tab.sign_in()
    tab.page.locator("nav .name").click()
    expect(tab.page.locator("article.assistant .text")).to_have_text(text)
    assert not tab.wrong


def test_code_that_cannot_be_coloured_is_shown_and_copied(tab):
    wrong = []
    tab.page.on("pageerror", lambda error: wrong.append(str(error)))
    tab.page.route("**/page/python.js", lambda route: route.abort())
    tab.shows("code", [turn("user", "q"), turn("assistant", "```python\na\n```\n\n```json\n{}\n```")])
    tab.sign_in()
    tab.page.locator("nav .name").click()
    expect(tab.page.locator("pre .copy")).to_have_count(2)
    expect(tab.page.locator("pre .hljs-punctuation").first).to_be_visible()
    assert not wrong


def test_fifty_files_at_once_leave_the_page_usable(tab):
    """Those that go along, and what is said of those that do not."""
    tab.sign_in()
    files = [{"name": f"{n}.{kind}", "mimeType": "", "buffer": data} for n in range(50)
             for kind, data in (("txt", b"text"), ("bin", b"\0"))]
    tab.page.locator("input[type=file]").set_input_files(files)
    expect(tab.page.locator(".chips li")).to_have_count(50)
    expect(tab.page.get_by_role("button", name="Leave out 0.txt", exact=True)).to_be_visible()
    boxes = [tab.page.locator(place).bounding_box() for place in ("#said", "#prompt", "button:text-is('Send')")]
    assert all(box["y"] >= 0 and box["y"] + box["height"] <= 800 for box in boxes)
    composed = "new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true, cancelable: true})"
    tab.page.fill("#prompt", "\u6771")
    assert tab.page.evaluate(f"document.getElementById('prompt').dispatchEvent({composed})")
    expect(tab.page.locator("article")).to_have_count(0)
