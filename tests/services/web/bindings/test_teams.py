"""MS Teams: the activities of an outgoing webhook, against a started server."""

from __future__ import annotations

import itertools
import json
import time
from datetime import datetime, timedelta, timezone

import pytest

from services.web.bindings.teams import LATER, POSTED_LATER, _unix_time, question_of
from tests.services.web.bindings.conftest import post, teams_headers
from tests.services.web.conftest import wait_until

NUMBERS = itertools.count(1485983408511)


def activity(said, thread="1481567603816", ago=0.0, **fields):
    """A message in a channel that mentions the webhook."""
    at = datetime.now(timezone.utc) - timedelta(seconds=ago)
    return {
        "type": "message", "id": str(next(NUMBERS)), "timestamp": at.strftime("%Y-%m-%dT%H:%M:%S.%f0Z"),
        "localTimestamp": at.isoformat(), "serviceUrl": "https://smba.trafficmanager.net/amer/", "channelId": "msteams",
        "from": {"id": "29:1XJKJMvc5GBtc2JwZq0oj8tHZmzrQgFmB39ATiQWA85gQtHieVkKilBZ9XHoq9j7Zaqt7CZ-NJWi7me2kHTL3Bw",
                 "name": "Megan Bowen", "aadObjectId": "7faf8bc1-30a5-4a7a-a0a4-3f0d1d1e8c4d"},
        "conversation": {"isGroup": True, "id": f"19:253b1f341670408fb6fe51050b6e5ceb@thread.skype;messageid={thread}"},
        "recipient": None, "textFormat": "plain", "text": f"<at>Parley</at> {said}", "attachments": [],
        "entities": [{"type": "clientInfo", "locale": "en-US", "country": "US", "platform": "Windows"}],
        "channelData": {"teamsChannelId": "19:253b1f341670408fb6fe51050b6e5ceb@thread.skype",
                        "teamsTeamId": "19:712c61d0ef384e5fa681ba90ca943398@thread.skype",
                        "tenant": {"id": "72f988bf-86f1-41af-91ab-2d7cd011db47"}}, **fields}


def send(server, payload, name="team", **signing):
    raw = json.dumps(payload).encode()
    return post(server, f"/bindings/teams/{name}", raw, teams_headers(raw, **signing))


def said(server, text, name="team", **how):
    response = send(server, activity(text, **how), name)
    assert response.status_code == 200 and response.json()["type"] == "message", response.text
    assert response.json()["textFormat"] == "plain"
    return response.json()["text"]


def test_a_message_is_answered_at_once(server):
    assert said(server, "hello &amp; good&nbsp;morning\n") == "You said: hello & good morning"


def test_a_thread_is_a_conversation(server):
    said(server, "My name is Alan", thread="1")
    assert said(server, "What is my name?", thread="1") == "Your name is Alan."
    assert said(server, "What is my name?", thread="2") == "You have not told me your name."


def test_a_late_answer_is_told_at_the_next_message(server):
    assert said(server, "!wait 0.3 !echo slow", "hasty", thread="3") == LATER
    wait_until(lambda: list((server.data / "bindings" / "late").glob("teams-hasty-*")))
    marker, = (server.data / "bindings" / "late").glob("teams-hasty-*")
    assert "slow" not in marker.read_text(), "the answer itself is in the session alone"
    assert said(server, "", "hasty", thread="3") == "slow"
    assert "slow" not in said(server, "", "hasty", thread="3")


def test_late_answers_go_before_the_next_one(server):
    said(server, "!wait 0.1 !echo one", "hasty", thread="4")
    folder = server.data / "bindings" / "late"
    wait_until(lambda: len(list(folder.glob("teams-hasty-*"))) == 1)
    assert said(server, "!wait 0.1 !echo two", "hasty", thread="4") == f"one\n\n{LATER}"
    wait_until(lambda: len(list(folder.glob("teams-hasty-*"))) == 1)
    assert said(server, "", "hasty", thread="4") == "two"


def test_a_late_error_is_told_too(server):
    said(server, "!wait 0.1 !fail internal_error", "hasty", thread="5")
    wait_until(lambda: list((server.data / "bindings" / "late").glob("teams-hasty-*")))
    assert "server's log" in said(server, "", "hasty", thread="5")


def test_a_late_answer_is_posted_where_that_is_set_up(server, platform):
    assert said(server, "!wait 0.1 !echo slow", "posting") == POSTED_LATER
    call, = platform.wait()
    assert call.path == "/workflow?sig=abc" and call.body["type"] == "message"
    card = call.body["attachments"][0]["content"]
    assert [block["text"] for block in card["body"]] == ["!wait 0.1 !echo slow", "slow"]


def test_what_cannot_be_posted_is_told_at_the_next_message(server, platform):
    platform.script.append((400, {}, ""))
    said(server, "!wait 0.1 !echo kept", "posting", thread="6")
    wait_until(lambda: list((server.data / "bindings" / "late").glob("teams-posting-*")))
    assert said(server, "", "posting", thread="6") == "kept"
    assert "later_url: 127.0.0.1 answers with HTTP 400" in server.log and "sig=abc" not in server.log


def test_a_long_answer_is_cut_and_says_so(server):
    text = said(server, "!tokens 3000")
    assert len(text) <= 10_000 and text.endswith("(cut: too long for a chat)")


BAD = {"none": lambda value: None, "no scheme": lambda value: value[5:], "flipped": lambda value: value[:7] + (
    "A" if value[7] != "A" else "B") + value[8:], "bearer": lambda value: "Bearer " + value[5:],
    "more": lambda value: value + "=", "a key": lambda value: "test-master-key-0123456789-abcdefghij"}


@pytest.mark.parametrize("bad", BAD)
def test_a_wrong_signature_is_401(server, bad):
    raw = json.dumps(activity("never")).encode()
    headers = teams_headers(raw)
    value = BAD[bad](headers.pop("Authorization"))
    if value is not None:
        headers["Authorization"] = value
    assert post(server, "/bindings/teams/team", raw, headers).status_code == 401


def test_another_token_is_401(server):
    assert send(server, activity("never"), token="AAAA").status_code == 401


def test_an_old_message_is_401(server):
    for payload in (activity("x", ago=301), activity("x", ago=-302), activity("x", timestamp=None),
                    activity("x", timestamp="yesterday"), activity("x", timestamp="2026-13-01T00:00:00Z")):
        assert send(server, payload).status_code == 401


def test_a_replay_is_401_and_takes_nothing(server):
    raw = json.dumps(activity("!wait 0.1 !echo mine", thread="7")).encode()
    headers = teams_headers(raw)
    assert post(server, "/bindings/teams/hasty", raw, headers).status_code == 200
    wait_until(lambda: list((server.data / "bindings" / "late").glob("teams-hasty-*")))
    assert post(server, "/bindings/teams/hasty", raw, headers).status_code == 401
    assert said(server, "", "hasty", thread="7") == "mine"


@pytest.mark.parametrize("change", [{"type": "conversationUpdate"}, {"text": None}, {"conversation": None},
                                    {"conversation": {"id": 7}}])
def test_what_makes_no_sense_is_400(server, change):
    assert send(server, activity("x", **change)).status_code == 400


@pytest.mark.parametrize("text, question", [
    ("<at>Bot</at> hello", "hello"), ("<p><at>Bot</at>&nbsp;hello</p>", "hello"), ("a<br>b<br/>c", "a\nb\nc"),
    ("<div>one</div><div>two &lt;b&gt;</div>", "one\ntwo <b>"), ("<at>Bot</at> ask <at>Ada</at>", "ask Ada"),
    ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"), ('<a href="https://a.example">https://a.example</a> what?',
                                             "https://a.example what?"), ("", ""), ("<at>Bot</at>", ""),
    pytest.param(" " * 400_000 + "x" + "<a" * 200_000, "x" + "<a" * 200_000, id="megabyte")])
def test_text_is_read_without_tags(text, question):
    assert question_of(text) == question


@pytest.mark.parametrize("text, seconds", [
    ("2017-02-01T21:10:07.437Z", 1485983407.0), ("2017-02-01T21:10:07Z", 1485983407.0),
    ("2017-02-01T21:10:07.4370000+00:00", 1485983407.0), ("2017-02-01T21:10:07+01:00", None), (7, None), ("", None)])
def test_times_are_read(text, seconds):
    assert _unix_time(text) == seconds


def test_an_answer_in_time_does_not_wait(server):
    began = time.monotonic()
    assert said(server, "quick") == "You said: quick"
    assert time.monotonic() - began < 30
