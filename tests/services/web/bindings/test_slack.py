"""Slack: requests as its documentation shows them, against a started server."""

from __future__ import annotations

import itertools
import json
import re
import time
from urllib.parse import urlencode

import pytest

from services.errors import ParleyError
from services.web.bindings.slack import _check, escaped, question_of, signed
from tests.services.web.bindings.conftest import (
    SIGNING_SECRET,
    bindings,
    new_key,
    post,
    slack_headers,
    write_bindings,
)
from tests.services.web.conftest import wait_until

NUMBERS = itertools.count(1)


def mention(said, **event):
    """An app_mention as the Events API sends it; each with an event_id of its own."""
    number = next(NUMBERS)
    return {
        "token": "ZZZZZZWSxiZZZ2yIvs3peJ", "team_id": "T061EG9R6", "api_app_id": "A0MDYCDME",
        "event": {"type": "app_mention", "user": "U061F7AUR", "text": f"<@U0LAN0Z89> {said}",
                  "ts": f"1515449522.{number:06}", "channel": "C0LAN2Q65", "event_ts": f"1515449522{number:06}",
                  **event},
        "type": "event_callback", "event_id": f"Ev0LAN{number:06}", "event_time": 1515449522000016,
        "authed_users": ["U0LAN0Z89"],
        "authorizations": [{"enterprise_id": None, "team_id": "T061EG9R6", "user_id": "U0LAN0Z89", "is_bot": True}]}


def message(text, **event):
    """A message.im."""
    return mention("", **{"type": "message", "text": text, "channel": "D024BE91L", "channel_type": "im", **event})


def send(server, payload, name="helpdesk", headers=None, **signing):
    raw = json.dumps(payload).encode()
    return post(server, f"/bindings/slack/{name}", raw, {**slack_headers(raw, **signing), **(headers or {})})


def command(server, text, platform, **fields):
    form = {"token": "gIkuvaNzQIHg97ATvDxqgjtO", "team_id": "T0001", "team_domain": "example",
            "channel_id": "C2147483705", "channel_name": "test", "user_id": "U2147483697", "user_name": "Steve",
            "command": "/ask", "text": text, "response_url": f"{platform.url}/hooks/commands/1234/5678",
            "trigger_id": f"13345224609.738474920.{next(NUMBERS)}", "api_app_id": "A123456", **fields}
    raw = urlencode(form).encode()
    return post(server, "/bindings/slack/helpdesk", raw, slack_headers(raw, form=True))


# ---------------------------------------------------------------- answers

def test_a_mention_is_answered_in_its_thread(server, platform):
    payload = mention("is it everything a river should be?")
    response = send(server, payload)
    assert (response.status_code, response.content) == (200, b"")
    call, = platform.wait()
    assert (call.method, call.path) == ("POST", "/api/chat.postMessage")
    assert call.headers["Authorization"] == "Bearer xoxb-1"
    assert call.body["channel"] == "C0LAN2Q65" and call.body["thread_ts"] == payload["event"]["ts"]
    assert call.body["text"] == "You said: is it everything a river should be?"
    assert call.body["mrkdwn"] is call.body["link_names"] is call.body["unfurl_links"] is False


def test_a_thread_is_a_conversation_of_the_binding_s_key(server, platform):
    first = mention("My name is Ada")
    send(server, first)
    platform.wait(1)
    send(server, mention("What is my name?", thread_ts=first["event"]["ts"]))
    assert platform.wait(2)[1].body["text"] == "Your name is Ada."
    assert platform.calls[1].body["thread_ts"] == first["event"]["ts"]
    send(server, mention("What is my name?"))
    assert platform.wait(3)[2].body["text"] == "You have not told me your name."
    names = server.call("GET", "/answer").json()
    mine = [name for name in names if name.startswith(f"{server.bot_key}/slack-helpdesk-")]
    assert len(mine) >= 2


def test_a_direct_message_is_answered_beside_it(server, platform):
    send(server, message("Good morning"))
    call, = platform.wait()
    assert call.body["channel"] == "D024BE91L" and "thread_ts" not in call.body


def test_what_it_used_is_charged_to_the_key(server, platform):
    def used(kind):
        found = re.search(rf'parley_key_tokens_total{{key="{server.bot_key}",kind="{kind}"}} (\S+)',
                          server.call("GET", "/metrics").text)
        return float(found[1]) if found else 0.0
    before = used("completion")
    send(server, mention("!tokens 25"))
    platform.wait()
    wait_until(lambda: used("completion") == before + 25)
    assert used("prompt") > 0


def test_a_long_answer_comes_in_parts(server, platform):
    send(server, mention("!tokens 1500"))
    first, *_, last = platform.wait(3)
    assert len(platform.calls) == 3 and all(len(call.body["text"]) <= 3500 for call in platform.calls)
    assert first.body["text"].startswith("w1 w2") and last.body["text"].endswith(" w1500")
    assert "".join(call.body["text"] for call in platform.calls).replace(" ", "") == \
        "".join(f"w{n}" for n in range(1, 1501))


def test_an_answer_calls_nobody(server, platform):
    send(server, mention("!echo &lt;!channel&gt; &amp; &lt;@U1|ada&gt;"))
    assert platform.wait()[0].body["text"] == "&lt;!channel&gt; &amp; &lt;@U1|ada&gt;"


def test_without_a_question_it_asks_for_one(server, platform):
    send(server, mention(""))
    assert platform.wait()[0].body["text"] == "Ask me something, and I answer here."


# ---------------------------------------------------------------- what is not answered

def test_the_address_is_verified(server, platform):
    payload = {"token": "Jhj5dZrVaK7ZwHHjRyZWjbDl", "challenge": "3eZbrw1aBm2rZgRNFdxV", "type": "url_verification"}
    assert send(server, payload).json() == {"challenge": "3eZbrw1aBm2rZgRNFdxV"}
    assert send(server, payload, secret="wrong").status_code == 401


def test_bots_and_notices_are_not_answered(server, platform):
    for payload in (mention("hello", bot_id="B0439P161B9"), mention("hello", user="U0LAN0Z89"),
                    message("hello", bot_id="B1"), message("hello", subtype="message_changed"),
                    message("hello", channel_type="channel"), {**mention("x"), "event": {"type": "reaction_added"}},
                    {**mention("x"), "type": "app_rate_limited"}, {**mention("x"), "event": None}):
        assert send(server, payload).status_code == 200
    send(server, mention("!echo the end"))
    assert platform.wait()[0].body["text"] == "the end" and len(platform.calls) == 1


def test_a_retry_is_answered_once(server, platform):
    payload = mention("!echo once")
    raw = json.dumps(payload).encode()
    assert send(server, payload).status_code == 200
    for attempt in (1, 2, 3):
        headers = {"X-Slack-Retry-Num": str(attempt), "X-Slack-Retry-Reason": "http_timeout"}
        at = int(slack_headers(raw)["X-Slack-Request-Timestamp"]) + attempt
        response = send(server, payload, headers=headers, at=at)
        assert (response.status_code, response.content) == (200, b"")
    send(server, mention("!echo the end"))
    assert sorted(call.body["text"] for call in platform.wait(2)) == ["once", "the end"]


def flipped(headers):
    signature = headers["X-Slack-Signature"]
    return {**headers, "X-Slack-Signature": signature[:-1] + format(int(signature[-1], 16) ^ 1, "x")}


BAD = {
    "a bit flipped": flipped,
    "none": lambda headers: {"Content-Type": "application/json"},
    "no time": lambda headers: {name: value for name, value in headers.items() if "Timestamp" not in name},
    "another time": lambda headers: {**headers, "X-Slack-Request-Timestamp": str(
        int(headers["X-Slack-Request-Timestamp"]) + 1)},
    "no digits": lambda headers: {**headers, "X-Slack-Request-Timestamp": "now"},
    "not ASCII": lambda headers: {**headers, "X-Slack-Signature": "v0=ü".encode()},
    "not version 0": lambda headers: {**headers, "X-Slack-Signature": "v1" + headers["X-Slack-Signature"][2:]},
    "a key": lambda headers: {"Authorization": "test-master-key-0123456789-abcdefghij"},
}


@pytest.mark.parametrize("bad", BAD)
def test_a_wrong_signature_is_401(server, platform, bad):
    raw = json.dumps(mention("!echo never")).encode()
    response = post(server, "/bindings/slack/helpdesk", raw, BAD[bad](slack_headers(raw)))
    assert response.status_code == 401 and response.json()["error"]["code"] == "unauthorized"
    assert platform.calls == []


@pytest.mark.parametrize("seconds", [-301, -100_000, 302, 10 ** 11])
def test_an_old_time_is_401(server, platform, seconds):
    raw = json.dumps(mention("!echo never")).encode()
    assert post(server, "/bindings/slack/helpdesk", raw, slack_headers(raw, at=int(time.time()) + seconds)
                ).status_code == 401
    assert platform.calls == []


def test_another_binding_s_secret_is_401(server, platform):
    assert send(server, mention("!echo never"), secret="another secret").status_code == 401
    assert send(server, mention("!echo never"), name="other").status_code == 401
    assert send(server, mention("!echo mine"), name="other", secret="another secret").status_code == 200
    assert platform.wait()[0].body["text"] == "mine" and len(platform.calls) == 1


def test_a_replay_is_401(server, platform):
    raw = json.dumps(mention("!echo once")).encode()
    headers = slack_headers(raw)
    statuses = [post(server, "/bindings/slack/helpdesk", raw, headers).status_code for _ in range(3)]
    assert statuses == [200, 401, 401]
    assert platform.wait()[0].body["text"] == "once" and len(platform.calls) == 1


def test_what_is_not_bound_is_not_there(server, platform):
    for path in ("/bindings/slack/nobody", "/bindings/slack/guild", "/bindings/discord/helpdesk"):
        response = post(server, path, b"{}", slack_headers(b"{}"))
        assert response.status_code == 404 and "nothing at this path" in response.json()["message"]


@pytest.mark.parametrize("raw", [b"", b"[]", b"no", b'{"type": "event_callback", "event": {"type": "app_mention", '
                                 b'"user": "U1", "channel": 7}}'])
def test_what_makes_no_sense_is_400(server, platform, raw):
    assert post(server, "/bindings/slack/helpdesk", raw, slack_headers(raw)).status_code == 400


def test_a_body_is_limited_before_it_is_read(server):
    raw = b"x" * ((1 << 20) + 1)
    assert post(server, "/bindings/slack/helpdesk", raw, slack_headers(raw)).status_code == 413


# ---------------------------------------------------------------- commands

def test_a_command_is_answered_to_its_response_url(server, platform):
    response = command(server, "what a day &amp; night", platform)
    assert (response.status_code, response.content) == (200, b"")
    call, = platform.wait()
    assert call.path == "/hooks/commands/1234/5678" and "Authorization" not in call.headers
    assert call.body == {"response_type": "ephemeral", "text": "You said: what a day &amp; night"}


def test_a_command_names_no_address_elsewhere(server, platform):
    for address in ("https://evil.example/x", f"{platform.url}/hooksx", f"{platform.url}/api/x", ""):
        assert command(server, "x", platform, response_url=address).status_code == 400
    assert command(server, "", platform, ssl_check="1").status_code == 200
    assert platform.calls == []


# ---------------------------------------------------------------- what fails

def test_an_error_is_told(server, platform):
    send(server, mention("!fail unavailable"))
    assert platform.wait()[0].body["text"] == "as the prompt asked for"
    send(server, mention("!fail internal_error"))
    assert "server's log" in platform.wait(2)[1].body["text"]


def test_an_unknown_personality_is_told_and_logged(server, platform):
    send(server, mention("hello"), name="unknown")
    assert platform.wait()[0].body["text"].startswith("This bot cannot answer now")
    wait_until(lambda: "no personality 'nobody'" in server.log)


def test_a_revoked_key_switches_the_bot_off(server, platform):
    key = new_key(server)
    values = bindings(platform, server.bot_key)
    write_bindings(server.data, {**values, "gone": {**values["helpdesk"], "key": key}})
    send(server, mention("!echo here"), name="gone")
    assert platform.wait()[0].body["text"] == "here"
    assert server.call("DELETE", f"/auth/keys/{key}").status_code in (200, 204)
    send(server, mention("!echo here"), name="gone")
    assert platform.wait(2)[1].body["text"] == "This bot is switched off."


def test_the_platform_s_rate_limit_is_kept(server, platform):
    platform.script.append((429, {"Retry-After": "0"}, '{"ok": false, "error": "ratelimited"}'))
    send(server, mention("!echo at last"))
    assert [call.body["text"] for call in platform.wait(2)] == ["at last", "at last"]


def test_what_is_not_delivered_is_logged_and_counted(server, platform):
    platform.script.append((200, {}, '{"ok": false, "error": "channel_not_found"}'))
    send(server, mention("!echo lost"))
    platform.wait()
    wait_until(lambda: "Slack took no message: channel_not_found" in server.log)
    wait_until(lambda: 'binding_messages_total{outcome="undelivered",platform="slack"}' in
               server.call("GET", "/metrics").text)
    assert 'binding_messages_total{outcome="answered",platform="slack"}' in server.call("GET", "/metrics").text


def test_no_secret_is_logged(server):
    assert all(secret not in server.log for secret in (SIGNING_SECRET, "xoxb-1", "commands/1234"))


# ---------------------------------------------------------------- pieces

def test_the_signature_of_slack_s_documentation():
    body = (b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&"
            b"channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&"
            b"response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F"
            b"96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c")
    assert signed(SIGNING_SECRET, "1531420618", body) == \
        "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"


@pytest.mark.parametrize("text, question", [
    ("<@U0LAN0Z89> hello", "hello"), ("<@U0LAN0Z89>: hello", "hello"),
    ("hello <@U1|ada> and <@U2>", "hello @ada and @U2"),
    ("<https://a.example/x?a=1&amp;b=2> what is it?", "https://a.example/x?a=1&b=2 what is it?"),
    ("<https://a.example|here>", "https://a.example"), ("in <#C1|general>, <!here>", "in #general, @here"),
    ("1 &lt; 2 &amp;&amp; 3 &gt; 2", "1 < 2 && 3 > 2"), ("<@U1>", ""), ("", "")])
def test_slack_s_notation_is_read(text, question):
    assert question_of(text) == question


def test_slack_s_notation_is_written():
    assert escaped("<!channel> & <@U1>") == "&lt;!channel&gt; &amp; &lt;@U1&gt;"
    assert question_of(escaped("<!channel> & &amp;")) == "<!channel> & &amp;"


@pytest.mark.parametrize("reply", [b"", b"[]", b"{}", b"<html>", b'{"ok": "true"}', b'{"ok": false}'])
def test_what_slack_did_not_take_is_known(reply):
    with pytest.raises(ParleyError, match="took no message"):
        _check(reply)
