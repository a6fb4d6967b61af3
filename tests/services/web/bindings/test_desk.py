"""Taking in and answering: places, the end of the server, its next start."""

from __future__ import annotations

import json
import threading

from services.errors import TooManyRequests
from tests.services.web.bindings.conftest import (
    SIGNING_SECRET,
    bindings,
    discord_headers,
    new_key,
    slack_headers,
    write_bindings,
)
from tests.services.web.bindings.test_discord import interaction
from tests.services.web.bindings.test_discord import send as send_discord
from tests.services.web.bindings.test_slack import command, mention, send
from tests.services.web.bindings.test_teams import said
from tests.services.web.conftest import wait_until


def test_a_wrong_file_is_told_of_and_the_last_good_one_serves(server, platform):
    values = bindings(platform, server.bot_key)
    write_bindings(server.data, {**values, "helpdesk": {**values["helpdesk"], "kind": "irc"}})
    try:
        assert send(server, mention("!echo still here")).status_code == 200
        assert platform.wait()[0].body["text"] == "still here"
        warnings = server.call("GET", "/readyz").json()["warnings"]
        assert any("data/bindings.json, line 3: binding 'helpdesk': kind" in warning for warning in warnings)
    finally:
        write_bindings(server.data, values)
    assert server.call("GET", "/readyz").json()["warnings"] == []


def test_when_there_is_no_place_the_platform_is_told(world, platform, monkeypatch):
    """An event is not counted as taken then, so that Slack sends it again."""
    monkeypatch.setenv("TEST_SLACK_SECRET", SIGNING_SECRET)
    _, key = world.parts.keys.create(name="bot")
    write_bindings(world.settings.data_dir, bindings(platform, key.id))
    room = world.app.extensions["parley"]
    monkeypatch.setattr(room.desk, "_seats", threading.BoundedSemaphore(1))
    raw = json.dumps(mention("hello")).encode()
    with room.desk._seats:
        response = world.client.post("/bindings/slack/helpdesk", data=raw, headers=slack_headers(raw))
        assert response.status_code == 503 and response.json["error"]["code"] == "busy"
        question = json.dumps(interaction("hello")).encode()
        response = world.client.post("/bindings/discord/guild", data=question, headers=discord_headers(question))
        assert response.json["type"] == 4 and response.json["data"]["flags"] == 64
    assert world.client.post("/bindings/slack/helpdesk", data=raw, headers=slack_headers(raw)).status_code == 200
    assert platform.wait()[0].body["text"] == "you said: hello"
    wait_until(lambda: room.drain.working == 0)
    assert room.desk._seats.acquire(blocking=False), "the place is given back"


def test_nothing_is_fetched_for_a_key_that_is_over_a_limit(world, platform, monkeypatch):
    monkeypatch.setenv("TEST_SLACK_SECRET", SIGNING_SECRET)
    _, key = world.parts.keys.create(name="bot")
    write_bindings(world.settings.data_dir, bindings(platform, key.id))
    world.parts.admissions.refuse = TooManyRequests("slowly")
    fetched = []
    monkeypatch.setattr(world.parts.grounding.fetcher, "read", lambda url, **_: fetched.append(url))
    raw = json.dumps(mention("https://a.example/ what is it?")).encode()
    assert world.client.post("/bindings/slack/helpdesk", data=raw, headers=slack_headers(raw)).status_code == 200
    assert platform.wait()[0].body["text"] == "slowly" and fetched == []


def test_all_platforms_at_once(server, platform):
    send(server, mention("!wait 0.2 !echo one"))
    command(server, "!wait 0.1 !echo two", platform)
    send_discord(server, interaction("!wait 0.1 !echo three"))
    assert said(server, "!echo four") == "four"
    assert {call.body.get("text") or call.body["content"] for call in platform.wait(3)} == {"one", "two", "three"}


def test_who_writes_during_an_answer_waits_for_its_turn(server, platform):
    first = mention("!wait 0.2 !echo one")
    send(server, first)
    send(server, mention("!echo two", thread_ts=first["event"]["ts"]))
    assert {call.body["text"] for call in platform.wait(2)} == {"one", "two"}, "neither is turned away"


def test_a_stop_waits_for_answers_cuts_them_and_the_next_start_repeats_none(start, platform):
    server = start(DRAIN_TIMEOUT="1", TEST_SLACK_SECRET=SIGNING_SECRET, NO_PROXY="127.0.0.1").ready()
    write_bindings(server.data, bindings(platform, new_key(server)))
    quick, slow = mention("!wait 0.3 !echo done"), mention("!tokens 100 !sleep 0.2")
    assert send(server, quick).status_code == send(server, slow).status_code == 200
    wait_until(lambda: len(server.call("GET", "/answer").json()) == 2)
    assert server.stop() == 0
    done, cut = sorted((call.body["text"] for call in platform.calls), key=lambda text: text != "done")
    assert done == "done" and ("the server stopped" in cut or "process ended" in cut), cut
    platform.clear()
    server.start().ready()
    for payload in (quick, slow):
        assert send(server, payload, headers={"X-Slack-Retry-Num": "2"}).status_code in (200, 401)
    send(server, mention("!echo the end"))
    assert platform.wait()[0].body["text"] == "the end" and len(platform.calls) == 1
