"""Profiles on the page: changed, tried beside what is saved, made of another one, deleted."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from tests.conftest import Server, make_home
from tests.page.test_operate import FIRE, FOREIGN, PAYLOADS, agree, go, serious

CONFIG = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 2048, "max_tokens": 200},
          "a/b": {"model": "tiny.gguf", "n_ctx": 2048, "temperature": 0, "top_p": 1.0, "verbose": True,
                  "stop": ["\nUser:", "back\\slash"], "keep_loaded": False, "max_tokens": 100}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("profiles") / "home", CONFIG)
    (home / "models" / "theirs.yaml").write_text("{name: theirs, parameters: {model: other.gguf}}")
    server = Server(home).start().ready()
    yield server
    server.end()


@pytest.fixture(autouse=True)
def as_it_was(server):
    path = server.data / "config.json"
    path.with_name("new").write_text(json.dumps(CONFIG, indent=2))
    path.with_name("new").replace(path)


def stored(server):
    return json.loads((server.data / "config.json").read_text())


def edited(tab, name):
    """The form of a profile, by its link in the list."""
    go(tab, "Models").get_by_role("link", name=f"Edit {name}").click()
    form = tab.page.get_by_role("form", name=f"Edit {name}")
    expect(form).to_be_visible()
    return form


def save(form):
    form.get_by_role("button", name="Save").click()


def test_a_wrong_value_is_told_at_its_field_and_a_right_one_saved(master, server):
    form = edited(master, "a/b")
    hot = form.get_by_label("temperature")
    expect(form.get_by_label("stop")).to_have_value("\\nUser:\nback\\\\slash")
    expect(form.get_by_label("top_k")).to_have_attribute("placeholder", "40")
    assert not serious(master)
    form.get_by_label("system", exact=True).fill("Be brief.")
    form.get_by_label("keep_loaded").fill("true")
    form.get_by_label("max_tokens").fill("")
    for wrong, said in (("hot", "valid number"), ("3", "less than or equal to 2")):
        hot.fill(wrong)
        save(form)
        expect(hot.locator("xpath=..").get_by_role("alert")).to_contain_text(said)
        expect(hot).to_be_focused()
        expect(hot).to_have_attribute("aria-invalid", "true")
        assert stored(server) == CONFIG and hot.input_value() == wrong
    hot.fill("0.5")
    form.get_by_label("stop").fill("###\n\\tTab\n")
    save(form)
    expect(master.page.get_by_text("Saved: the next question has it")).to_be_visible()
    expect(form.get_by_role("alert")).to_have_count(0)
    wanted = {**CONFIG["a/b"], "temperature": 0.5, "system": "Be brief.", "keep_loaded": True, "stop": ["###", "\tTab"]}
    del wanted["max_tokens"]
    assert stored(server) == {**CONFIG, "a/b": wanted} and '"top_p": 1.0' in (server.data / "config.json").read_text()
    master.wrong.clear()        # the browser tells of each 400


def test_what_is_typed_in_is_tried_beside_what_is_saved(master, server):
    form, page = edited(master, "a/b"), master.page
    form.get_by_label("max_tokens").fill("7")
    prompt = page.get_by_role("textbox", name="Prompt")
    prompt.fill("!tokens 30")
    page.get_by_role("button", name="Try", exact=True).click()
    typed, saved = (page.get_by_role("region", name=name) for name in ("As typed in", "As saved"))
    expect(typed.get_by_role("status")).to_contain_text(re.compile(r"tiny\.gguf · \d+ \+ 7 tokens · .*ended by length"))
    expect(saved.get_by_role("status")).to_contain_text(re.compile(r"tiny\.gguf · \d+ \+ 30 tokens · .*ended by stop"))
    expect(page.get_by_role("button", name="Try", exact=True)).to_be_focused()
    assert len(saved.locator("pre").inner_text()) > len(typed.locator("pre").inner_text()) > 0
    assert stored(server) == CONFIG and not serious(master)
    left, right = (node.bounding_box() for node in (saved, typed))
    assert left["x"] < right["x"] and left["y"] == right["y"]
    page.set_viewport_size({"width": 390, "height": 800})
    left, right = (node.bounding_box() for node in (saved, typed))
    assert left["x"] == right["x"] and left["y"] < right["y"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    prompt.fill(f"!echo <img src=x onerror={FIRE}>")
    form.get_by_label("max_tokens").fill("")
    page.get_by_role("button", name="Try", exact=True).click()
    expect(saved.locator("pre")).to_have_text(f"<img src=x onerror={FIRE}>")
    assert page.locator(FOREIGN).count() == 0 and not page.evaluate("window.fired") and not master.wrong
    form.get_by_label("max_tokens").fill("1000")
    prompt.fill("!sleep 60")
    page.get_by_role("button", name="Try", exact=True).click()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(typed.get_by_role("status")).to_have_text("Stopped")
    form.get_by_label("top_p").fill("2")
    page.get_by_role("button", name="Try", exact=True).click()
    expect(form.get_by_role("alert")).to_contain_text("top_p: input should be less than or equal to 1")
    expect(form.get_by_label("top_p")).to_be_focused()


def test_what_was_changed_meanwhile_is_told_and_taken_in(master, server):
    form, page = edited(master, "a/b"), master.page
    form.get_by_label("system", exact=True).fill("Mine.")
    theirs = {**CONFIG["a/b"], "k": 9, "system": "Theirs."}
    assert server.call("PUT", "/models/profiles/a/b", json=theirs).status_code == 200
    save(form)
    expect(form.get_by_role("alert")).to_contain_text("was changed meanwhile")
    assert stored(server)["a/b"] == theirs
    form.get_by_role("button", name="Load the newer one").click()
    expect(form.get_by_label("k", exact=True)).to_have_value("9")
    expect(form.get_by_label("system", exact=True)).to_have_value("Mine.")
    save(form)
    expect(page.get_by_text("Saved: the next question has it")).to_be_visible()
    assert stored(server)["a/b"] == {**theirs, "system": "Mine."}


def test_one_is_made_of_another_and_deleted(master, server):
    page, place = master.page, go(master, "Models")
    place.get_by_role("link", name="Duplicate a/b").click()
    form = page.get_by_role("form", name="Make a profile")
    save(form)
    expect(form.get_by_label("Name", exact=True)).to_be_focused()
    form.get_by_label("Name", exact=True).fill("one")
    save(form)
    expect(form.get_by_role("alert")).to_contain_text("a profile of this name already")
    name = PAYLOADS[1]
    form.get_by_label("Name", exact=True).fill(name)
    form.get_by_label("description").fill(name)
    save(form)
    expect(page.get_by_role("form", name=f"Edit {name}").get_by_label("description")).to_have_value(name)
    assert stored(server)[name] == {**CONFIG["a/b"], "description": name}
    go(master, "Models")
    expect(place.get_by_role("button", name="Delete one", exact=True)).to_have_count(0)
    place.get_by_role("button", name=f"Delete {name}").click()
    agree(master, "Delete")
    expect(place.get_by_role("link", name=f"Edit {name}")).to_have_count(0)
    assert stored(server) == CONFIG and page.locator(FOREIGN).count() == 0 and not page.evaluate("window.fired")
    place.get_by_role("link", name="New profile").click()
    save(form)
    form.get_by_label("Name", exact=True).fill("fresh")
    save(form)
    expect(form.get_by_label("model", exact=True)).to_be_focused()
    form.get_by_label("model", exact=True).select_option("other.gguf")
    save(form)
    expect(page.get_by_role("form", name="Edit fresh")).to_be_visible()
    assert stored(server)["fresh"] == {"model": "other.gguf"}


def test_localais_are_edited_where_they_come_from(master, server):
    go(master, "Models").get_by_role("link", name="Edit theirs").click()
    place = master.page.locator("main.operate")
    expect(place).to_contain_text("It comes from models/theirs.yaml, and is edited there.")
    assert not master.wrong


def test_what_is_typed_outlives_the_view_until_it_is_discarded(master, server):
    form, page = edited(master, "a/b"), master.page
    form.get_by_label("system", exact=True).fill("Typed for long.")
    edited(master, "a/b")
    expect(form.get_by_label("system", exact=True)).to_have_value("Typed for long.")
    expect(page.get_by_text("What you had typed stands here")).to_be_visible()
    asked = []
    page.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    page.evaluate("location.reload()")
    expect(form.get_by_label("system", exact=True)).to_have_value("Typed for long.")
    page.get_by_role("button", name="Discard it").click()
    expect(form.get_by_label("system", exact=True)).to_have_value("")
    expect(form.get_by_label("model", exact=True)).to_be_focused()
    form.get_by_label("top_k").fill("7.0")
    save(form)
    expect(form.get_by_label("top_k")).to_have_value("7")
    page.reload()
    expect(form.get_by_label("top_k")).to_have_value("7")
    expect(page.get_by_text("What you had typed stands here")).to_be_hidden()
    assert asked == ["beforeunload"] and stored(server)["a/b"]["top_k"] == 7 and not master.wrong


def test_what_is_typed_outlives_a_new_secret_of_the_key(tab, server):
    tab.key = server.make_key(scopes=["answer", "models:read", "admin"])
    tab.sign_in()
    form, page = edited(tab, "a/b"), tab.page
    form.get_by_label("system", exact=True).fill("Typed for long.")
    me = server.call("GET", "/auth", tab.key).json()["id"]
    tab.key = server.call("POST", f"/auth/keys/{me}/rotate", json={}).json()["key"]
    save(form)
    page.get_by_label("API key").fill(tab.key)
    page.keyboard.press("Enter")
    edited(tab, "a/b")
    expect(form.get_by_label("system", exact=True)).to_have_value("Typed for long.")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("API key").fill(server.make_key(scopes=["answer", "models:read", "admin"]))
    page.keyboard.press("Enter")
    edited(tab, "a/b")
    expect(form.get_by_label("system", exact=True)).to_have_value("")       # it is somebody else's


def test_a_broken_file_is_told(master, server):
    place, path = go(master, "Models"), server.home / "data" / "config.json"
    before = path.read_text()
    path.write_text("{")
    expect(place).to_contain_text("The last good profiles stay in use: data/config.json, line 1")
    path.write_text(before)
    expect(place).not_to_contain_text("The last good profiles")
