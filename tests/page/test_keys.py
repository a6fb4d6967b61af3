"""Keys on the page: edited in a dialog, and looked through where there are many."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import pytest
from playwright.sync_api import expect

from tests.conftest import Server, make_home
from tests.page.conftest import CONFIG
from tests.page.test_operate import agree, go, row, serious


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("keys") / "home", CONFIG)
    server = Server(home).start().ready()
    yield server
    server.end()


def edit(tab, name):
    tab.page.get_by_role("button", name=f"Edit {name}", exact=True).click()
    return tab.page.get_by_role("dialog", name=f"Edit “{name}”")


def record(server, name):
    return next(key for key in server.call("GET", "/auth/keys").json()["keys"] if key["name"] == name)


def test_limits_are_changed_and_taken_away(master, server):
    secret = server.make_key(name="a colleague", requests_per_minute=60, max_parallel=2, expires_in=86400,
                             token_budget={"tokens": 5000, "per": "month"}, weight=0.25, profiles=["one"])
    made = record(server, "a colleague")
    sent = []
    master.page.route("**/auth/keys/*", lambda route: (sent.append(route.request.post_data_json), route.continue_()))
    go(master, "Keys")
    expect(row(master, "signed in with it").get_by_role("button")).to_have_count(0)
    dialog = edit(master, "a colleague")
    assert not serious(master)
    expect(dialog.get_by_label("Requests a minute")).to_have_value("60")
    expect(dialog.get_by_label("Token budget")).to_have_value("5000")
    expect(dialog.get_by_label("Budget is for")).to_have_value("month")
    expect(dialog.get_by_label("Profiles", exact=True)).to_have_value("one")
    ends = datetime.fromisoformat(made["expires_at"].replace("Z", "+00:00"))
    expect(dialog.get_by_label("Expires")).to_have_value(ends.astimezone().strftime("%Y-%m-%dT%H:%M"))
    agree(master, "Save")
    expect(dialog).to_be_hidden()
    assert not sent
    expect(master.page.get_by_role("button", name="Edit a colleague")).to_be_focused()
    edit(master, "a colleague").get_by_label("Requests a minute").fill("120")
    dialog.get_by_label("Answers at the same time").fill("")
    dialog.get_by_label("Profiles", exact=True).fill("")
    dialog.get_by_label("Token budget").fill("9000")
    dialog.get_by_label("models:switch").uncheck()
    agree(master, "Save")
    expect(row(master, "a colleague")).to_contain_text("120 requests/min, 9,000 tokens a month, weight 0.25")
    expect(row(master, "a colleague")).to_contain_text("answer, models:read")
    expect(master.page.get_by_role("button", name="Edit a colleague")).to_be_focused()
    assert sent == [{"requests_per_minute": 120, "max_parallel": None, "profiles": None,
                     "token_budget": {"tokens": 9000, "per": "month"}, "scopes": ["answer", "models:read"]}]
    assert server.call("GET", "/auth", secret).json()["limits"]["requests_per_minute"] == 120
    later = datetime.now(timezone.utc) + timedelta(days=3)
    edit(master, "a colleague").get_by_label("Expires").fill(later.astimezone().strftime("%Y-%m-%dT%H:%M"))
    agree(master, "Save")
    expect(dialog).to_be_hidden()
    assert 2.99 * 86400 <= sent[-1]["expires_in"] <= 3 * 86400 and len(sent[-1]) == 1
    edit(master, "a colleague").get_by_label("Expires").fill("")
    agree(master, "Save")
    expect(row(master, "a colleague")).to_contain_text("never")
    assert sent[-1] == {"expires_in": None} and not master.wrong


def test_a_key_for_a_profile_that_is_not_there_is_told(master):
    place = go(master, "Keys")
    place.locator("summary", has_text="Make a key").click()
    place.get_by_label("Profiles", exact=True).fill("one, tow")
    master.page.get_by_role("button", name="Make the key").click()
    expect(place.get_by_role("alert")).to_contain_text("there is no profile “tow”; there are: one, two")
    expect(place.get_by_label("Profiles", exact=True)).to_be_focused()
    expect(row(master, "signed in with it")).to_contain_text(re.compile(r"\d+ requests, \d+ tokens"))


def test_a_refusal_is_told_at_its_field_and_nothing_typed_is_lost(tab, server):
    tab.key = server.make_key(name="deputy", scopes=["answer", "keys"], profiles=["one", "two"], max_parallel=4)
    server.call("POST", "/auth/key", tab.key, json={"name": "mine", "scopes": ["answer"], "profiles": ["one"]})
    tab.page.set_viewport_size({"width": 390, "height": 800})
    tab.sign_in()
    go(tab, "Keys")
    dialog = edit(tab, "mine")
    assert not serious(tab)
    expect(dialog.get_by_label("admin")).to_be_disabled()
    expect(dialog.get_by_label("admin this key lacks it itself")).to_be_visible()
    expect(dialog.get_by_label("Answers at the same time")).to_have_attribute("max", "4")
    expect(dialog.get_by_label("Answers at the same time")).to_have_attribute("required", "")
    dialog.get_by_label("Name", exact=True).fill("changed")
    dialog.get_by_label("Profiles", exact=True).fill("one, three")
    agree(tab, "Save")
    profiles = dialog.get_by_label("Profiles", exact=True)
    expect(profiles.locator("xpath=..").get_by_role("alert")).to_contain_text("its own profiles: one, two")
    expect(profiles).to_be_focused()
    expect(profiles).to_have_attribute("aria-invalid", "true")
    expect(dialog.get_by_label("Name", exact=True)).to_have_value("changed")
    assert not serious(tab) and record(server, "mine")["profiles"] == ["one"]
    assert dialog.evaluate("(node) => node.scrollWidth <= node.clientWidth && node.clientWidth <= innerWidth")
    dialog.get_by_label("Profiles", exact=True).fill("two")
    agree(tab, "Save")
    expect(row(tab, "changed")).to_contain_text("two")
    tab.wrong.clear()           # the 403
    edit(tab, "deputy").get_by_label("Answers at the same time").fill("3")
    agree(tab, "Save")
    expect(row(tab, "deputy")).to_contain_text("3 at once")
    expect(edit(tab, "deputy").get_by_label("Answers at the same time")).to_have_attribute("max", "3")
    assert not tab.wrong


def test_a_thousand_keys_are_looked_through(master, server):
    server.make_key(name="old friend")
    first = record(server, "old friend")
    many = [first, *({**first, "id": f"k{number}", "name": f"number {number}"} for number in range(1000))]
    master.page.route("**/auth/keys", lambda route: route.fulfill(json={"keys": many}))
    place = go(master, "Keys")
    rows = place.locator("tbody tr")
    expect(rows).to_have_count(100)
    expect(rows.first).to_contain_text("number 999")
    place.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(200)
    place.get_by_label("Find").fill("OLD")
    expect(rows).to_have_count(1)
    expect(place.get_by_role("button", name="Show more")).to_be_hidden()
    dialog = edit(master, "old friend")
    dialog.get_by_label("Name", exact=True).fill("new friend")
    many[0] = {**first, "name": "new friend"}
    agree(master, "Save")
    expect(place).to_contain_text("There are no such keys.")
    expect(place.get_by_role("region", name="All keys")).to_be_focused()
    place.get_by_label("Find").fill(first["id"])
    expect(rows).to_contain_text("new friend")
    assert record(server, "new friend") and not master.wrong


def test_secrets_stay_until_they_are_put_away(master, server):
    page, place = master.page, go(master, "Keys")
    place.locator("summary", has_text="Make a key").click()
    page.route("**/auth/keys", lambda route: route.abort())
    for name in ("a twin", "a twin"):
        place.get_by_label("Name", exact=True).fill(name)
        page.get_by_role("button", name="Make the key").click()
        expect(place.get_by_label("Name", exact=True)).to_have_value("")
    expect(place.get_by_label("Secret")).to_have_count(2)       # also where the list cannot be told
    expect(page.get_by_role("form", name="Make a key").get_by_role("alert")).to_have_count(0)
    expect(page.get_by_text("the server cannot be reached just now").first).to_be_visible()
    page.unroute_all()
    for _ in range(2):
        page.get_by_role("button", name="Done").first.click()
        expect(page.get_by_role("region", name="All keys")).to_be_focused()
    expect(place.get_by_label("Secret")).to_have_count(0)
    go(master, "Jobs")
    go(master, "Keys")
    twins = row(master, "a twin").get_by_role("button", name="Revoke")
    expect(twins).to_have_count(2)
    names = twins.evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
    assert len(set(names)) == 2
    page.get_by_role("button", name=names[0]).press("Enter")
    agree(master, "Revoke")
    expect(row(master, "revoked").first).to_be_visible()
    expect(page.get_by_role("region", name="All keys")).to_be_focused()


def test_what_a_key_may_not_do_to_others_is_not_offered(tab, server):
    ids = {name: server.call("POST", "/auth/key", json={"name": name, **rights}).json()["id"] for name, rights in {
        "an equal": {"scopes": ["answer"], "profiles": ["one"]}, "of all profiles": {"scopes": ["answer"]},
        "an operator": {"scopes": ["answer", "admin"], "profiles": ["one"]}}.items()}
    tab.key = server.make_key(scopes=["answer", "keys"], profiles=["one"])
    tab.sign_in()
    go(tab, "Keys")
    expect(row(tab, "an operator")).to_be_visible()
    offered = {name: row(tab, id).get_by_role("button").all_inner_texts() for name, id in ids.items()}
    assert offered == {"an equal": ["Edit", "Rotate", "Revoke"], "of all profiles": ["Revoke"], "an operator": []}
    assert not tab.wrong


def test_what_is_being_saved_is_not_cancelled(master, server):
    server.make_key(name="in a hurry", scopes=["answer"])
    held = []
    master.page.route("**/auth/keys/*", lambda route: held.append(route))
    go(master, "Keys")
    dialog = edit(master, "in a hurry")
    dialog.get_by_label("Requests a minute").fill("7")
    with master.page.expect_request("**/auth/keys/*"):
        agree(master, "Save")
    agree(master, "Cancel")
    master.page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    held[0].continue_()
    expect(dialog).to_be_hidden()
    expect(row(master, "in a hurry")).to_contain_text("7 requests/min")
    assert not master.wrong
