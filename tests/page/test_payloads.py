"""What a model or a person writes is shown, and never runs: over 200 payloads, none of which fires or leaves."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from tests.page.conftest import turn

FIRE = "window.fired=1"
EVENTS = ("onerror", "onload", "onclick", "onmouseover", "onfocus", "ontoggle", "onanimationstart", "onpointerenter",
          "onbeforetoggle", "onscroll")
TAGS = ("img src=x", "svg", "body", "iframe", "video src=x", "audio src=x", "details open", "input autofocus",
        "marquee", "object data=x", "style", "a href=#")
URLS = ("javascript:FIRE", "JaVaScRiPt:FIRE", "java\tscript:FIRE", "java&#x73;cript:FIRE", "&#106;avascript:FIRE",
        "data:text/html,<script>FIRE</script>", "vbscript:FIRE", "https://evil.test/x", "//evil.test/x",
        "file:///etc/passwd", " javascript:FIRE", "\x01javascript:FIRE", "blob:FIRE")
WHOLE = Path(__file__).with_name("payloads.txt").read_text().split("\n%%\n")
PAYLOADS = [text.replace("FIRE", FIRE) for text in (
    *(f"<{tag} {event}=FIRE>x" for tag in TAGS for event in EVENTS), *(f"[x]({url})" for url in URLS),
    *(f'<a href="{url}">x</a>' for url in URLS), *(f"![x]({url})" for url in URLS), *WHOLE)]
FORBIDDEN = {"SCRIPT", "IMG", "IFRAME", "OBJECT", "EMBED", "FORM", "INPUT", "STYLE", "LINK", "SVG", "MATH", "BASE",
             "META", "VIDEO", "AUDIO", "TEMPLATE"}
PROVOKE = """() => { for (const node of document.querySelectorAll('.text *')) {
    for (const kind of ['mouseover', 'focus', 'pointerenter', 'toggle', 'animationstart', 'scroll', 'load', 'error'])
        node.dispatchEvent(new Event(kind));
    if (!node.closest('a')) node.dispatchEvent(new MouseEvent('click'));
} }"""


def test_no_payload_fires_and_no_request_leaves(tab):
    assert len(PAYLOADS) >= 200
    turns = [turn(role, text) for text in PAYLOADS for role in ("user", "assistant")]
    tab.shows("evil", turns, f"<img src=x onerror={FIRE}>")
    tab.sign_in()
    tab.page.locator("nav .name").click()
    tab.page.locator("button.earlier").click()
    expect(tab.page.locator("article")).to_have_count(len(turns))
    links = tab.page.evaluate("[...document.querySelectorAll('.text a')].map((node) => node.getAttribute('href'))")
    assert links and all(link is None or link.startswith(("https://", "mailto:")) for link in links)
    tab.page.evaluate(PROVOKE)
    tab.page.wait_for_timeout(300)
    assert tab.page.evaluate("window.fired") is None and not tab.foreign
    kinds = tab.page.evaluate("[...document.querySelectorAll('.text *')].map((node) => node.tagName.toUpperCase())")
    assert not FORBIDDEN & {*kinds}
    assert tab.page.locator(".text [id], .text [name], .text [style], .text .skip, .text .primary").count() == 0
    assert tab.page.evaluate("document.getElementById('said').getAttribute('role')") == "status"


def test_a_streamed_answer_is_cleaned_as_it_grows(tab):
    tab.sign_in()
    tab.ask(f"!echo <img src=x onerror={FIRE}> **bold** <script>{FIRE}</script>")
    assert tab.page.locator("article.assistant strong").inner_text() == "bold"
    assert tab.page.evaluate("window.fired") is None and tab.page.locator("article.assistant img").count() == 0


def test_code_is_coloured_and_copied(tab):
    code = "def f(x):\n    return 'a'\n"
    tab.shows("code", [turn("assistant", f"```python\n{code}```")])
    tab.sign_in()
    tab.page.locator("nav .name").click()
    expect(tab.page.locator(".hljs-keyword").first).to_have_text("def")
    tab.page.locator("pre .copy").click()
    expect(tab.page.locator("pre .copy")).to_have_text("Copied")
    assert tab.page.evaluate("navigator.clipboard.readText()") == code
    assert not tab.wrong


def test_names_of_a_language_share_its_grammar(tab):
    """A fence of each name: a word of the language has its colour."""
    said = {"js": "const", "jsx": "return", "mjs": "import", "javascript": "async", "ts": "interface", "tsx": "type",
            "c": "while", "h": "struct", "cpp": "namespace", "hpp": "template", "py": "def", "sh": "if", "rs": "fn",
            "kt": "import", "cs": "class", "php": "function"}
    tab.shows("code", [turn("assistant", "\n\n".join(f"```{name}\n{word} x\n```" for name, word in said.items()))])
    tab.sign_in()
    tab.page.locator("nav .name").click()
    for name, word in said.items():
        coloured = tab.page.locator(f".language-{name} .hljs-keyword")
        expect(coloured.first).to_have_text(word)
    assert not tab.wrong
