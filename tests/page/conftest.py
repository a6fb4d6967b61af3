"""The page in a browser: Debian's Chromium without a window, driven by Playwright, against a started server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import MASTER, Server, make_home

PATIENCE = 30_000           # milliseconds: it means "did not happen"
expect.set_options(timeout=PATIENCE)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ELSEWHERE = "parley"        # a name of the server for which browsers take plain HTTP as not secure, as on a phone
CONFIG = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 4096, "max_tokens": 2000, "k": 3},
          "two": {"model": "other.gguf"}}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        skip = pytest.mark.skip(reason="there is no chromium on this machine: apt-get install chromium "
                                       "(./setup.sh test does it as root)")
        for item in items:
            if "tests/page" in str(item.path):
                item.add_marker(skip)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ended with each file of tests: as long as it runs, no event loop but Playwright's can run in this thread."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = make_home(tmp_path_factory.mktemp("page") / "home", CONFIG)
    (home / "models" / "other.gguf").write_bytes((home / "models" / "tiny.gguf").read_bytes())
    server = Server(home).start().ready()
    yield server
    server.end()


@dataclass
class Tab:
    """A tab, and all that went wrong in it."""

    page: Page
    server: Server
    key: str
    wrong: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)    # requests that left the origin

    def __post_init__(self) -> None:
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: None if request.url.startswith((self.server.url, "data:", "blob:"))
                     else self.foreign.append(request.url))

    def open(self) -> None:
        self.page.goto(f"{self.server.url}/")

    def sign_in(self) -> Tab:
        self.open()
        self.page.fill("#key", self.key)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("#prompt")
        return self

    def send(self, prompt: str) -> None:
        self.page.fill("#prompt", prompt)
        self.page.keyboard.press("Enter")

    def ask(self, prompt: str) -> str:
        """The text of the answer, once it is there."""
        answers = self.page.locator("article.assistant")
        before = answers.count()
        self.send(prompt)
        self.done()
        assert answers.count() > before or before >= 30
        return answers.last.locator(".text").inner_text()

    def done(self) -> None:
        self.page.wait_for_selector("button:has-text('Send'):visible")
        expect(self.page.locator(".log")).to_have_attribute("aria-busy", "false")

    def shows(self, id: str, turns: list[dict[str, str]], name: str = "a name", others: int = 0) -> None:
        """Has the page find one conversation with these turns, and others, without asking the server."""
        names = {id: name, **{f"s{number}": f"Conversation {number}" for number in range(others)}}
        self.page.route(f"**/answer/{id}", lambda route: route.fulfill(
            json={"session_id": id, "name": name, "turns": turns}))
        self.page.route("**/answer?order=used", lambda route: route.fulfill(json=names))

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        return self.server.call(method, path, self.key, **kwargs).json()


@pytest.fixture
def tab(browser: Browser, server: Server) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    tab = Tab(page, server, server.make_key())
    yield tab
    context.close()
    assert not tab.foreign


@pytest.fixture
def master(tab: Tab) -> Tab:
    """A tab whose key may do everything."""
    tab.key = MASTER
    return tab.sign_in()


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content, "at": "2026-01-01T00:00:00Z"}
