"""data/bindings.json: what it may hold, what is said of what it may not, and that the last good one stays in use."""

from __future__ import annotations

import json
import os

import pytest

from services import settings
from services.web.bindings.config import Bindings
from services.web.bindings.routes import KINDS
from tests.services.web.bindings.conftest import PUBLIC_KEY, SECURITY_TOKEN

SLACK = {"kind": "slack", "personality": "assistant", "key": "k1", "signing_secret": "sss", "bot_token": "xoxb-1"}
DISCORD = {"kind": "discord", "personality": "assistant", "key": "k1", "public_key": PUBLIC_KEY}
TEAMS = {"kind": "teams", "personality": "assistant", "key": "k1", "security_token": SECURITY_TOKEN}


@pytest.fixture
def write(tmp_path):
    path = tmp_path / "data" / "bindings.json"
    path.parent.mkdir()

    def write(values):
        path.with_suffix(".new").write_text(values if isinstance(values, str) else json.dumps(values, indent=1))
        os.replace(path.with_suffix(".new"), path)
    write.bindings = Bindings(path, KINDS)
    write.path = path
    return write


def test_without_the_file_nothing_is_bound(write):
    assert write.bindings.current() == {} and write.bindings.problem is None


def test_the_file_is_read_anew_when_it_changes(write):
    write({"a": SLACK, "b": DISCORD, "c": TEAMS})
    found = write.bindings.current()
    assert [found[name].kind for name in "abc"] == ["slack", "discord", "teams"] and write.bindings.problem is None
    assert found["a"].api == "https://slack.com/api" and found["b"].api == "https://discord.com/api/v10"
    write({"a": {**SLACK, "api": "http://127.0.0.1:9/api/"}})
    assert write.bindings.current()["a"].api == "http://127.0.0.1:9/api"
    write.path.unlink()
    assert write.bindings.current() == {}


def test_secrets_do_not_show(write):
    write({"a": SLACK, "c": {**TEAMS, "later_url": "https://flow.example/x?sig=abc"}})
    shown = repr(write.bindings.current())
    assert not any(secret in shown for secret in ("sss", "xoxb-1", SECURITY_TOKEN, "sig=abc"))


def test_a_secret_may_be_a_variable(write, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "from outside")
    write({"a": {**SLACK, "bot_token": {"env": "MY_SECRET"}}})
    assert write.bindings.current()["a"].bot_token.get_secret_value() == "from outside"
    monkeypatch.delenv("MY_SECRET")
    write({"a": {**SLACK, "bot_token": {"env": "MY_SECRET"}}, "b": DISCORD})
    assert "b" not in write.bindings.current(), "the last good one"
    assert write.bindings.problem == ("data/bindings.json, line 7: binding 'a': bot_token: the variable MY_SECRET is "
                                      "not set in the server's environment")


def test_a_variable_may_stand_in_env(tmp_path):
    (tmp_path / ".env").write_text("SLACK_SECRET=abc\n")
    assert settings.variable("SLACK_SECRET", {}, tmp_path / ".env") == "abc"
    assert settings.variable("SLACK_SECRET", {"SLACK_SECRET": "x"}, tmp_path / ".env") == "x"
    assert settings.variable("SLACK_OTHER", {}, tmp_path / ".env") is settings.variable("X_Y", {}, None) is None


@pytest.mark.parametrize("values, told", [
    ({"a": 7}, "line 2: binding 'a': expected an object"),
    ({"a": {}}, "kind: expected one of slack, discord, teams"),
    ({"a": {"kind": "irc"}}, "line 3: binding 'a': kind: expected one of slack, discord, teams"),
    ({"a": {"kind": ["slack"]}}, "kind: expected one of"),
    ({"Big": SLACK}, "binding 'Big': name: expected up to 24 small letters"),
    ({"a/b": SLACK}, "expected up to 24 small letters"),
    ({"a": {**SLACK, "colour": 1}},
     "line 8: binding 'a': colour: unknown field; known are: api, bot_token, hooks, key"),
    ({"a": {name: SLACK[name] for name in ("kind", "key")}},
     "personality: missing; such a binding needs bot_token, key, kind, personality, signing_secret"),
    ({"a": {**SLACK, "bot_token": ""}}, "bot_token: "),
    ({"a": {**SLACK, "key": f"ply_{'sss' * 12}"}}, "line 5: binding 'a': key: expected the id of a key, as `main.py"),
    ({"a": {**SLACK, "key": "an old key"}}, "key: expected the id of a key"),
    ({"a": {**SLACK, "bot_token": {"file": "x"}}}, 'bot_token: expected the secret, or {"env": "NAME"}'),
    ({"a": {**SLACK, "api": "http://slack.com/api"}}, "api: expected an address that begins with https://"),
    ({"a": {**SLACK, "api": "https://u:p@slack.com"}}, "api: expected an address"),
    ({"a": {**SLACK, "api": "https://[x"}}, "api: expected an address"),
    ({"a": {**DISCORD, "public_key": "abc"}}, "public_key: "),
    ({"a": {**TEAMS, "security_token": "%%%"}}, "security_token: expected the security token that Teams shows"),
    ({"a": {**TEAMS, "later_url": "http://flow.example"}}, "later_url: expected an address"),
    ({"a": {**TEAMS, "wait_seconds": 11}}, "wait_seconds: "),
    ("[]", "expected a JSON object with bindings by name"), ("{", "not JSON"),
    ('{"a": {}, "a": {}}', "'a' is given twice")])
def test_what_is_wrong_is_told_with_its_line(write, values, told):
    write({"a": SLACK})
    good = write.bindings.current()
    write(values)
    assert write.bindings.current() is good
    assert told in write.bindings.problem and write.bindings.problem.startswith("data/bindings.json, line ")
    assert not any(secret in write.bindings.problem for secret in ("sss", "xoxb-1", "%%%", "u:p@"))
