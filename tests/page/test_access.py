"""The page for everybody: nothing serious is found by axe, and it is heard and led well."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.page.conftest import turn

SCHEMES = ("light", "dark")
ANSWER = """```python
@cached
def f(x: int) -> str:  # why
    return 'a' + str(1.5)
```

| a | b |
|---|---|
| 1 | 2 |

[there](https://example.org) and `code`

```diff
- old
+ new
```"""
CITED = {"n": 1, "title": "A", "url": "https://example.org", "cited": True}


def is_fine(tab):
    """No finding that is serious or critical."""
    found = Axe().run(tab.page).response["violations"]
    assert not [(one["id"], [node["html"] for node in one["nodes"]]) for one in found
                if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_signing_in(tab, scheme):
    tab.page.emulate_media(color_scheme=scheme)
    tab.open()
    tab.page.fill("#key", "wrong")
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("alert")).to_contain_text("Unauthorized")
    is_fine(tab)


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_talking(tab, scheme, width):
    tab.page.emulate_media(color_scheme=scheme)
    tab.page.set_viewport_size({"width": width, "height": 800})
    tab.shows("code", [turn("user", "How?"), {**turn("assistant", ANSWER), "interrupted": True,
                                              "reasoning_content": "Hm.", "citations": [CITED]}])
    tab.sign_in()
    tab.page.locator("summary").first.click()
    is_fine(tab)                                    # what to do first
    if width < 700:
        tab.page.get_by_role("button", name="Conversations").click()
        is_fine(tab)
    tab.page.get_by_role("button", name="a name", exact=True).click()
    expect(tab.page.locator(".hljs-keyword").first).to_be_visible()
    tab.page.locator("input[type=file]").set_input_files([{"name": "a.txt", "mimeType": "", "buffer": b"a"}])
    expect(tab.page.locator(".chips li")).to_have_count(1)
    is_fine(tab)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_menus_and_dialogs(tab, scheme):
    tab.page.emulate_media(color_scheme=scheme)
    tab.shows("one", [turn("user", "x")])
    tab.sign_in()
    for item in ("Rename", "Delete"):
        tab.page.locator("nav .more").click()
        is_fine(tab)
        tab.page.get_by_role("menuitem", name=item).click()
        expect(tab.page.get_by_role("dialog")).to_be_visible()
        is_fine(tab)
        tab.page.keyboard.press("Escape")
        expect(tab.page.locator("nav .more")).to_be_focused()


def test_an_answer_is_heard_in_sentences(tab):
    tab.sign_in()
    tab.page.evaluate("""() => { window.heard = [];
        const hear = ({addedNodes}) => addedNodes.forEach((node) => heard.push(node.textContent));
        const region = document.querySelector('.heard');
        new MutationObserver((all) => all.forEach(hear)).observe(region, {childList: true}); }""")
    tab.ask("!sleep 0.005 !echo First comes **this**. Then, at 3.14 or so, that! And the rest")
    assert tab.page.evaluate("heard") == ["First comes this.", "Then, at 3.14 or so, that!", "And the rest"]
    assert tab.page.locator(".heard").get_attribute("aria-live") == "polite"
    assert tab.page.locator(".log").get_attribute("aria-live") == "off"


def test_the_first_link_skips_to_the_prompt(tab):
    tab.sign_in()
    assert tab.page.evaluate("document.querySelector('a, button, input, select, textarea').className") == "skip"
    skip = tab.page.get_by_role("link", name="To the prompt")
    skip.focus()
    assert skip.bounding_box()["x"] >= 0
    skip.press("Enter")
    expect(tab.page.locator("#prompt")).to_be_focused()


def test_the_focus_is_never_lost(tab):
    tab.sign_in()
    tab.page.fill("#prompt", "!sleep 0.02 !tokens 20")
    tab.page.get_by_role("button", name="Send").click()
    expect(tab.page.get_by_role("button", name="Stop")).to_be_focused()
    tab.done()
    expect(tab.page.locator("#prompt")).to_be_focused()
    tab.page.get_by_role("button", name="Again: answer 1").click()
    tab.done()
    expect(tab.page.locator("#prompt")).to_be_focused()
    more = tab.page.locator("nav .more")
    more.press("Enter")
    tab.page.get_by_role("menuitem", name="Rename").press("Enter")
    tab.page.get_by_role("textbox", name="New name").fill("Other")
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("nav .name")).to_have_text("Other")
    expect(more).to_be_focused()
    more.press("Enter")
    tab.page.get_by_role("menuitem", name="Delete").press("Enter")
    tab.page.get_by_role("dialog").get_by_role("button", name="Delete").press("Enter")
    expect(tab.page.locator("#prompt")).to_be_focused()


def test_the_buttons_of_turns_have_names_of_their_own(tab):
    tab.shows("one", [turn(role, f"{role} {n}") for n in range(3) for role in ("user", "assistant")])
    tab.sign_in()
    tab.page.locator("nav .name").click()
    tab.page.wait_for_selector("article")
    names = tab.page.locator("article button").evaluate_all("(all) => all.map((one) => one.getAttribute('aria-label'))")
    assert len(names) == len({*names}) == 15 and "Copy answer 2" in names


def test_each_paragraph_has_the_direction_of_its_words_and_a_print_has_all_turns(tab):
    right, left = "\u05e9\u05dc\u05d5\u05dd!", "hello!"
    tab.shows("both", [turn("user", right), turn("assistant", f"{right}\n\n{left}"),
                       *[turn(role, "word\n\n" * 20) for role in ("user", "assistant") * 5]])
    tab.sign_in()
    tab.page.locator("nav .name").click()
    where = """(node) => { const range = document.createRange(); range.selectNodeContents(node);
        const words = range.getBoundingClientRect(), whole = node.getBoundingClientRect();
        return words.left - whole.left < whole.right - words.right ? 'left' : 'right'; }"""
    for place, side in (("article.user .text", "right"), ("article.assistant p", "right"),
                        ("article.assistant p >> nth=1", "left")):
        assert tab.page.locator(place).first.evaluate(where) == side, place
    tab.page.emulate_media(media="print")
    assert tab.page.locator(".log").evaluate("(log) => log.scrollHeight <= log.clientHeight + 1")
    for name in ("Send", "New conversation", "Copy question 1"):
        expect(tab.page.get_by_role("button", name=name)).to_have_count(0)
