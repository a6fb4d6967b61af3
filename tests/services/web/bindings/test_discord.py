"""Discord: interactions as its documentation shows them, against a started server."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.web.bindings.discord import question_of
from tests.services.web.bindings.conftest import discord_headers, post
from tests.services.web.conftest import wait_until

NUMBERS = itertools.count(786008729715212338)
TOKEN = "A_UNIQUE_TOKEN"
BASE = f"/discord/webhooks/771825006014889984/{TOKEN}"


def interaction(question, **fields):
    """The use of `/ask question: …` in a channel."""
    return {
        "type": 2, "token": TOKEN, "id": str(next(NUMBERS)), "application_id": "771825006014889984", "version": 1,
        "member": {"user": {"id": "53908232506183680", "username": "Mason", "discriminator": "1337",
                            "avatar": "a_d5efa99b3eeaa7dd43acca82f5692432", "public_flags": 131141},
                   "roles": ["539082325061836999"], "premium_since": None, "permissions": "2147483647",
                   "pending": False, "nick": None, "mute": False, "joined_at": "2017-03-13T19:19:14.040000+00:00",
                   "is_pending": False, "deaf": False},
        "guild_id": "290926798626357999", "channel_id": "645027906669510667", "app_permissions": "442368",
        "locale": "en-US", "guild_locale": "en-US", "entitlements": [],
        "data": {"options": [{"type": 3, "name": "question", "value": question}], "type": 1, "name": "ask",
                 "id": "771825006014889984"}, **fields}


def send(server, payload, **signing):
    raw = json.dumps(payload).encode()
    return post(server, "/bindings/discord/guild", raw, discord_headers(raw, **signing))


def test_a_ping_is_answered(server, platform):
    ping = {"application_id": "771825006014889984", "id": "1", "token": TOKEN, "type": 1, "version": 1}
    assert send(server, ping).json() == {"type": 1}
    assert send(server, ping, key=Ed25519PrivateKey.from_private_bytes(b"x" * 32)).status_code == 401


def test_a_command_is_promised_an_answer_and_gets_it(server, platform):
    response = send(server, interaction("cardboard box?"))
    assert (response.status_code, response.json()) == (200, {"type": 5})
    call, = platform.wait()
    assert (call.method, call.path) == ("PATCH", f"{BASE}/messages/@original")
    assert call.body == {"content": "You said: cardboard box?", "allowed_mentions": {"parse": []}}
    assert call.headers["User-Agent"].startswith("DiscordBot (") and "Authorization" not in call.headers


def test_a_channel_is_a_conversation(server, platform):
    send(server, interaction("My name is Grace", channel_id="1001"))
    platform.wait(1)
    send(server, interaction("What is my name?", channel_id="1001"))
    assert platform.wait(2)[1].body["content"] == "Your name is Grace."
    send(server, interaction("What is my name?", channel_id="1002"))
    assert platform.wait(3)[2].body["content"] == "You have not told me your name."


def test_a_long_answer_has_followers(server, platform):
    send(server, interaction("!tokens 700"))
    first, *more = platform.wait(2)
    assert first.method == "PATCH" and [(call.method, call.path) for call in more] == [("POST", BASE)]
    assert all(len(call.body["content"]) <= 2000 and call.body["allowed_mentions"] == {"parse": []}
               for call in platform.calls)
    assert more[-1].body["content"].endswith(" w700")


def test_mentions_call_nobody(server, platform):
    send(server, interaction("!echo @everyone look at <@53908232506183680>"))
    call, = platform.wait()
    assert call.body["content"] == "@everyone look at <@53908232506183680>"
    assert call.body["allowed_mentions"] == {"parse": []}


def test_an_answer_that_is_faster_than_the_promise_is_sent_again(server, platform):
    platform.script.append((404, {"Retry-After": "0"}, '{"message": "Unknown Webhook", "code": 10015}'))
    send(server, interaction("!echo fast"))
    assert [call.body["content"] for call in platform.wait(2)] == ["fast", "fast"]


@pytest.mark.parametrize("bad", ["flipped", "none", "no time", "another time", "no hex", "short", "another body"])
def test_a_wrong_signature_is_401(server, platform, bad):
    raw = json.dumps(interaction("!echo never")).encode()
    headers = discord_headers(raw)
    signature, at = headers["X-Signature-Ed25519"], headers["X-Signature-Timestamp"]
    changes = {"flipped": {"X-Signature-Ed25519": format(int(signature, 16) ^ 1, "0128x")},
               "none": {"X-Signature-Ed25519": None}, "no time": {"X-Signature-Timestamp": None},
               "another time": {"X-Signature-Timestamp": str(int(at) + 1)},
               "no hex": {"X-Signature-Ed25519": "z" * 128}, "short": {"X-Signature-Ed25519": signature[:-2]},
               "another body": {}}
    body = raw.replace(b"never", b"again") if bad == "another body" else raw
    headers = {name: value for name, value in {**headers, **changes[bad]}.items() if value}
    assert post(server, "/bindings/discord/guild", body, headers).status_code == 401
    assert platform.calls == []


@pytest.mark.parametrize("seconds", [-301, 302])
def test_an_old_time_is_401(server, platform, seconds):
    assert send(server, interaction("!echo never"), at=int(time.time()) + seconds).status_code == 401
    assert platform.calls == []


def test_a_replay_is_401_however_it_is_written(server, platform):
    raw = json.dumps(interaction("!echo once")).encode()
    headers = discord_headers(raw)
    signature = headers["X-Signature-Ed25519"]
    assert post(server, "/bindings/discord/guild", raw, headers).json() == {"type": 5}
    for same in (signature, signature.upper(), signature[:2] + " " + signature[2:]):
        again = {**headers, "X-Signature-Ed25519": same}
        assert post(server, "/bindings/discord/guild", raw, again).status_code == 401
    assert platform.wait()[0].body["content"] == "once" and len(platform.calls) == 1


@pytest.mark.parametrize("change", [
    {"type": 3}, {"type": 4}, {"type": "2"}, {"application_id": 7}, {"application_id": "1/../2"}, {"token": "a/b"},
    {"token": ""}, {"id": "x"}, {"channel_id": None}])
def test_what_makes_no_sense_is_400(server, platform, change):
    assert send(server, interaction("!echo never", **change)).status_code == 400
    assert platform.calls == []


def test_a_direct_message_is_its_user_s(server, platform):
    payload = interaction("!echo hi", user={"id": "42"})
    del payload["channel_id"], payload["member"]
    assert send(server, payload).json() == {"type": 5}
    assert platform.wait()[0].body["content"] == "hi"


def test_a_dead_token_is_logged(server, platform):
    platform.script.append((401, {}, '{"message": "Invalid Webhook Token", "code": 50027}'))
    send(server, interaction("!echo lost"))
    wait_until(lambda: "the answer was not delivered: 127.0.0.1 answers with HTTP 401: given up" in server.log)
    assert TOKEN not in server.log


@pytest.mark.parametrize("data, question", [
    ({"options": [{"type": 3, "value": " a "}]}, "a"),
    ({"options": [{"type": 4, "value": 7}, {"type": 1, "options": [{"type": 3, "value": "deep"}]}]}, "deep"),
    ({"options": [{"type": 3, "value": 7}, None]}, ""), ({"options": {}}, ""), ({}, ""), (None, "")])
def test_the_question_is_the_first_text(data, question):
    assert question_of({"data": data}) == question
