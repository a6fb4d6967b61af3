"""Going from one conversation to another, away and back: nothing that runs or was typed is lost by it."""

from __future__ import annotations

from playwright.sync_api import expect

SLOW = "!sleep 0.05 !tokens 60"


def opened(tab, name):
    tab.page.locator("nav").get_by_role("button", name=name, exact=True).click()


def begun(tab, prompt):
    tab.send(prompt)
    expect(tab.page.locator("article.assistant").last).to_contain_text("w3")


def test_an_answer_goes_on_while_another_conversation_is_shown(tab):
    tab.sign_in()
    begun(tab, SLOW)
    tab.page.keyboard.press("Control+Shift+O")
    expect(tab.page.locator("article")).to_have_count(0)
    assert tab.ask("hello") == "You said: hello"
    expect(tab.page.locator(".name[aria-current]")).to_have_text("hello")
    opened(tab, SLOW)
    expect(tab.page.locator("article.assistant .text").last).to_contain_text("w59")
    tab.done()
    expect(tab.page.locator("article .hint")).to_have_count(0)
    opened(tab, "hello")
    expect(tab.page.locator("article.assistant .text")).to_have_text(["You said: hello"])
    assert not tab.wrong


def test_who_comes_back_to_a_running_answer_can_stop_it(tab):
    tab.sign_in()
    tab.ask("hello")
    tab.page.keyboard.press("Control+Shift+O")
    begun(tab, "!sleep 0.05 !tokens 900")
    opened(tab, "hello")
    expect(tab.page.get_by_role("button", name="Send")).to_be_visible()
    opened(tab, "!sleep 0.05 !tokens 900")
    expect(tab.page.locator(".state")).to_contain_text("is being written")
    tab.page.get_by_role("button", name="Stop").click()
    tab.done()
    tab.page.reload()
    expect(tab.page.locator("article.assistant .hint")).to_have_text("This was cut short.")


def test_a_reload_and_the_way_back_lead_to_the_conversation_and_keep_what_was_typed(tab):
    tab.sign_in()
    tab.ask("one")
    tab.page.keyboard.press("Control+Shift+O")
    tab.ask("two")
    tab.page.fill("#prompt", "a draft")
    tab.page.reload()
    expect(tab.page.locator("article.user .text")).to_have_text(["two"])
    expect(tab.page.locator("#prompt")).to_have_value("a draft")
    opened(tab, "one")
    expect(tab.page.locator("article.user .text")).to_have_text(["one"])
    tab.page.go_back()
    expect(tab.page.locator("article.user .text")).to_have_text(["two"])
    tab.page.get_by_role("link", name="Models").click()
    tab.page.get_by_role("link", name="Chat").click()
    expect(tab.page.locator("article.user .text")).to_have_text(["two"])
    tab.page.reload()
    expect(tab.page.locator("article.user .text")).to_have_text(["two"])
    assert not tab.wrong


def test_asking_again_in_the_middle_is_agreed_to_first(tab):
    tab.sign_in()
    tab.ask("one")
    tab.ask("two")
    tab.page.get_by_role("button", name="Again").first.click()
    tab.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(tab.page.locator("article.user .text")).to_have_text(["one", "two"])
    tab.page.get_by_role("button", name="Again").first.click()
    tab.page.get_by_role("dialog").get_by_role("button", name="Ask again").click()
    expect(tab.page.locator("article.user .text")).to_have_text(["one"])
    tab.done()


def test_a_double_click_on_send_stops_nothing(tab):
    tab.sign_in()
    tab.page.fill("#prompt", "!wait 1 !tokens 3")
    place = tab.page.get_by_role("button", name="Send").bounding_box()
    tab.page.mouse.dblclick(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    expect(tab.page.locator("article.assistant .text")).to_contain_text("w2")
    tab.done()
    expect(tab.page.locator("article .hint")).to_have_count(0)


def test_a_server_that_is_busy_or_away_signs_nobody_out(tab):
    tab.sign_in()
    tab.page.route("**/auth", lambda route: route.fulfill(status=503, json={"error": {"message": "busy just now"}}))
    tab.page.reload()
    expect(tab.page.get_by_role("alert")).to_have_text("busy just now")
    tab.page.unroute("**/auth")
    tab.page.get_by_role("button", name="Try again").click()
    tab.page.wait_for_selector("#prompt")
