"""Pictures of the page and a talk with the starter model: `python -m tests.page.pictures` writes examples/images.

The test that takes them all leaves them in tests/page/shots.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import MASTER, ROOT, Server, make_home
from tests.page.conftest import CHROMIUM

FOLDER = ROOT / "examples" / "images"
SHOTS = ROOT / "tests" / "page" / "shots"
VIEWS = {"Keys": "a colleague", "Models": "starter.gguf", "Jobs": "done", "Knowledge": "Make it",
         "Load": "Time to first token"}      # of the operator, with what is to be read there
LARGEST = 120_000       # bytes: they are looked at in a README
ASKED = ("Hello!", "My name is Ada.", "What is the capital of France?", "What is my name?")


def starter(folder: Path) -> Server:
    """A server as on a fresh machine: the starter model and its profiles."""
    home = make_home(folder / "home")
    (home / "data" / "config.json").unlink()
    for name in ("tiny", "other"):
        (home / "models" / f"{name}.gguf").unlink()
    return Server(home, "llama").start().ready()


def sign_in(page: Page, url: str, key: str) -> None:
    page.goto(f"{url}/")
    page.fill("#key", key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#prompt")


def ask(page: Page, prompt: str) -> str:
    """The text of the answer."""
    page.fill("#prompt", prompt)
    page.keyboard.press("Enter")
    page.wait_for_selector("button:has-text('Send'):visible")
    expect(page.locator(".log")).to_have_attribute("aria-busy", "false", timeout=30_000)
    return page.locator("article.assistant .text").last.inner_text()


def furnish(server: Server) -> None:
    """A key and a job, so that the operator's views have something to show."""
    server.make_key(name="a colleague", requests_per_minute=60)
    server.call("POST", "/answer", MASTER, json={"prompt": "Hello!", "async": True})


def try_out(page: Page, url: str) -> None:
    """Shows a profile that was changed beside what it is."""
    page.goto(f"{url}/#models/edit/starter")
    page.get_by_label("max_tokens").fill("4")
    page.get_by_role("textbox", name="Prompt").fill(ASKED[2])
    page.get_by_role("button", name="Try", exact=True).click()
    for region in ("As typed in", "As saved"):
        expect(page.get_by_role("region", name=region).get_by_role("status")).to_contain_text("ended by")
    page.get_by_role("region", name="As typed in").scroll_into_view_if_needed()


def take(browser: Browser, server: Server, folder: Path, views: Sequence[str]) -> dict[str, list[str]]:
    """Writes first, talk, profile, phone and one of each of the `views` (.png); what was answered, by picture."""
    page = browser.new_page(viewport={"width": 1100, "height": 700})
    sign_in(page, server.url, MASTER)
    expect(page.locator(".first")).to_have_attribute("open", "")
    page.screenshot(path=folder / "first.png")
    said = [ask(page, prompt) for prompt in ASKED]
    page.screenshot(path=folder / "talk.png")
    for view in views:
        page.get_by_role("link", name=view, exact=True).click()
        expect(page.locator("main.operate")).to_contain_text(VIEWS[view])
        if view == "Load":
            expect(page.locator(".plot strong").first).not_to_have_text("–")
        page.screenshot(path=folder / f"{view.lower()}.png")
    try_out(page, server.url)
    page.screenshot(path=folder / "profile.png")
    page.close()
    phone = browser.new_page(viewport={"width": 390, "height": 700}, color_scheme="dark")
    sign_in(phone, server.url, MASTER)
    answers = [ask(phone, prompt) for prompt in ASKED[1:3]]
    phone.screenshot(path=folder / "phone.png")
    phone.close()
    return {"talk": said, "phone": answers}


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = starter(Path(folder))
        try:
            take(playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]), server, FOLDER,
                 ["Models"])
        finally:
            server.end()
    sizes = {path: path.stat().st_size for path in sorted(FOLDER.glob("*.png"))}
    for path, size in sizes.items():
        print(f"{size / 1000:6.1f} KB  {path.relative_to(ROOT)}")
    return int(max(sizes.values()) > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
