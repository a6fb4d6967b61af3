"""How soon and how smoothly the page works: `python tests/bench/bench_page.py` prints it, medians of 5.

From loopback, in Chromium without a window and without a cache, signed in, with 1,000 conversations in the list:
how long until the prompt can be typed into; then, of a conversation of 500 turns, until it is shown, until all of it
is, and until a typed letter is on the screen.
"""

from __future__ import annotations

import gzip
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import Browser, Page, sync_playwright

from services.web.page import FOLDER
from tests.conftest import Server, make_home
from tests.page.conftest import CHROMIUM, Tab, turn

RUNS = 5
LETTERS = 40
TEXT = "Some **markdown** with `code`, a list:\n\n- one\n- two\n\n```python\ndef f(x):\n    return x\n```\n"
READY = """() => new Promise((done) => { const look = () => document.activeElement?.id === "prompt"
    ? done(performance.now()) : requestAnimationFrame(look); look(); })"""
SHOWN = """([button, count]) => new Promise((done) => { const begun = performance.now();
    [...document.querySelectorAll("button")].find((one) => one.textContent.startsWith(button)).click();
    const look = () => document.querySelectorAll("article").length >= count
        ? requestAnimationFrame(() => done(performance.now() - begun)) : requestAnimationFrame(look); look(); })"""
TYPED = """() => new Promise((done) => { const field = document.getElementById("prompt"), begun = performance.now();
    document.execCommand("insertText", false, "a");
    field.getBoundingClientRect();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun))); })"""


def once(browser: Browser, server: Server, key: str) -> dict[str, float]:
    """Milliseconds."""
    context = browser.new_context()
    page: Page = context.new_page()
    page.add_init_script(f"sessionStorage.setItem('parley-key', '{key}')")
    tab = Tab(page, server, key)
    tab.shows("long", [turn(role, TEXT) for _ in range(250) for role in ("user", "assistant")], others=1000)
    page.goto(f"{server.url}/chat", wait_until="commit")
    found = {"until the prompt can be typed into": page.evaluate(READY)}
    page.wait_for_selector("nav .name")
    found["until a conversation of 500 turns is shown"] = page.evaluate(SHOWN, ["a name", 60])
    found["until all of its turns are"] = page.evaluate(SHOWN, ["Show ", 500])
    page.focus("#prompt")
    found["until a typed letter is on the screen"] = statistics.median(page.evaluate(TYPED) for _ in range(LETTERS))
    context.close()
    return found


def main() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    loaded = [path for path in files if not path.name.endswith(".LICENSE.txt")]
    print(f"{sum(path.stat().st_size for path in loaded) / 1000:8.1f} KB  {len(loaded)} files of the page, "
          f"{sum(path.stat().st_size for path in files) / 1000:.1f} KB with licences, "
          f"{sum(len(gzip.compress(path.read_bytes())) for path in loaded) / 1000:.1f} KB as they are sent")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(make_home(Path(folder) / "home")).start().ready()
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            key = server.make_key()
            runs = [once(browser, server, key) for _ in range(RUNS)]
        finally:
            server.end()
    for name in runs[0]:
        times = sorted(run[name] for run in runs)
        print(f"{statistics.median(times):8.1f} ms  {name} ({times[0]:.1f} to {times[-1]:.1f})")


if __name__ == "__main__":
    main()
