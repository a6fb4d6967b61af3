"""Signing in: what is told to somebody who has no key, or something else."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from services.cli.keys import keys


def test_what_cannot_be_a_key_is_told_and_not_sent(tab):
    sent = []
    tab.page.on("request", lambda request: sent.append(request.url) if request.url.endswith("/auth") else None)
    tab.open()
    for typed in ("ключ", "two words"):
        tab.page.fill("#key", typed)
        tab.page.keyboard.press("Enter")
        assert tab.page.eval_on_selector("#key", "field => field.validity.patternMismatch")
    assert not sent and not tab.wrong
    tab.page.fill("#key", f"  {tab.key} ")
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#prompt")).to_be_visible()
    assert sent


def test_the_command_that_makes_a_key_is_one_of_main_py(tab):
    tab.open()
    said = tab.page.locator(".hint code").inner_text()
    assert re.fullmatch(r"\.venv/bin/python main\.py keys create", said)
    assert "create" in keys.commands
