"""Pictures of the page and a talk with the starter model: `python -m tests.page.pictures` writes examples/images."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import MASTER, ROOT, Server, make_home
from tests.page.conftest import CHROMIUM

FOLDER = ROOT / "examples" / "images"
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


def take(browser: Browser, server: Server, folder: Path) -> dict[str, list[str]]:
    """Writes first.png, talk.png, models.png and phone.png; what was answered, by picture."""
    page = browser.new_page(viewport={"width": 1100, "height": 700})
    sign_in(page, server.url, MASTER)
    expect(page.locator(".first")).to_have_attribute("open", "")
    page.screenshot(path=folder / "first.png")
    said = [ask(page, prompt) for prompt in ASKED]
    page.screenshot(path=folder / "talk.png")
    page.get_by_role("link", name="Models").click()
    page.wait_for_selector("main.operate table")
    page.screenshot(path=folder / "models.png")
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
            take(playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]), server, FOLDER)
        finally:
            server.end()
    sizes = {path: path.stat().st_size for path in sorted(FOLDER.glob("*.png"))}
    for path, size in sizes.items():
        print(f"{size / 1000:6.1f} KB  {path.relative_to(ROOT)}")
    return int(max(sizes.values()) > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
