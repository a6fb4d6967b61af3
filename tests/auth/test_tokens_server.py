"""Tokens and BYPASS_AUTHORIZATION through a started server, a key server beside it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from services.cli.keys import keys as command
from services.settings import Settings
from tests.auth.key_server import KID, OTHER_KID, KeyServer, key_server, new_key, token
from tests.conftest import ROOT, Server, make_home, serving

LOCAL = "bypass-authorization"


@dataclass
class Scene:
    server: Server
    key_server: KeyServer
    signing: Any
    key_id: str             # of the key that tokens of KID come in as; those of OTHER_KID do as another one's

    def ask(self, method: str, path: str, token: str | None = None, **kwargs: Any) -> requests.Response:
        headers = {**({} if token is None else {"Authorization": f"Bearer {token}"}), **kwargs.pop("headers", {})}
        return requests.request(method, self.server.url + path, headers=headers, timeout=30, **kwargs)

    def who(self, token: str | None) -> str:
        return self.ask("GET", "/auth", token).json()["id"]


def keys_command(home: Path, *words: str) -> str:
    settings = Settings(data_dir=home / "data", asap_keys="https://keys.example")
    result = CliRunner().invoke(command, words, obj=settings)
    assert result.exit_code == 0, result.output
    return result.stderr + result.stdout


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    home, signing = make_home(tmp_path_factory.mktemp("tokens") / "home"), new_key()
    with key_server() as public_keys:
        public_keys.put(KID, signing)
        with serving(home, ASAP_PUB_KEYS_REPO_URL=public_keys.url, ASAP_PUB_KEYS_FOLDER="prod",
                     ASAP_PUB_KEYS_AUDS="skynet,parley", BYPASS_AUTHORIZATION="yes") as server:
            made = keys_command(home, "create", "--name", "jitsi", "--scope", "answer", "--jwt-kid", KID,
                                "--rpm", "500")
            keys_command(home, "create", "--jwt-kid", OTHER_KID, "--jwt-iss", "meet")
            yield Scene(server.ready(), public_keys, signing, made.split()[2])


def test_a_token_is_a_key(scene: Scene) -> None:
    good = token(scene.signing)
    whoami = scene.ask("GET", "/auth", good).json()
    assert (whoami["id"], whoami["name"], whoami["scopes"]) == (scene.key_id, "jitsi", ["answer"])
    assert whoami["limits"]["requests_per_minute"] == 500 and whoami["jwt"] == {"kids": [KID], "iss": None}
    for headers in ({"Authorization": good}, {"X-API-Key": good}, {"Authorization": f"bearer {good}"}):
        assert scene.ask("GET", "/auth", headers=headers).json()["id"] == scene.key_id
    assert scene.ask("GET", "/auth/keys", good).status_code == 403
    answer = scene.ask("POST", "/answer", good, json={"prompt": "hello", "session_id": "token"})
    assert answer.status_code == 200, answer.text
    assert "token" in scene.ask("GET", "/answer", token(scene.signing, cid="someone")).json()
    assert "token" not in scene.ask("GET", "/answer").json()
    assert scene.who(scene.server.make_key()).startswith("k")


def test_a_job_belongs_to_the_key(scene: Scene) -> None:
    good = token(scene.signing)
    made = scene.ask("POST", "/summaries/v1/summary", good, json={"text": "They met and talked. " * 20})
    assert made.status_code == 200, made.text
    assert scene.ask("GET", f"/summaries/v1/job/{made.json()['id']}", good).status_code == 200
    assert scene.ask("GET", f"/summaries/v1/job/{made.json()['id']}").status_code == 404


@pytest.mark.parametrize(("detail", "text"), [
    ("Failed to decode JWT header", lambda scene: "e.e.e"),
    ("Invalid token. No kid header.", lambda scene: token(scene.signing, kid=None)),
    ("Expired token.", lambda scene: token(scene.signing, exp=int(time.time()) - 60)),
    (f"Failed decoding JWT with public key {KID}", lambda scene: token(scene.signing, aud="other")),
    (f"Failed decoding JWT with public key {KID}", lambda scene: token(None, algorithm="none")),
    ("no key takes tokens with the kid '../x'", lambda scene: token(scene.signing, kid="../x"))])
def test_the_words_for_what_is_wrong(scene: Scene, detail: str, text: Any) -> None:
    for path in ("/summaries/v1/jobs", "/auth"):
        response = scene.ask("GET", path, text(scene))
        body = response.json()
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert body["message"] == body["error"]["message"] == detail
        assert body.get("detail") == (detail if path.startswith("/summaries") else None)


def test_a_token_does_not_belong_in_the_address(scene: Scene) -> None:
    assert scene.ask("GET", "/auth", params={"jwt": token(scene.signing)}).status_code == 400


def test_a_key_server_that_fails(scene: Scene) -> None:
    """503 for a token whose public key is not known, service for those whose is."""
    assert scene.who(token(scene.signing)) == scene.key_id
    scene.key_server.answer = (500, {}, b"")
    unknown = token(scene.signing, kid=OTHER_KID)
    response = scene.ask("GET", "/auth", unknown)
    assert response.status_code == 503 and int(response.headers["Retry-After"]) >= 1
    assert scene.who(token(scene.signing)) == scene.key_id
    scene.key_server.answer = None


def test_a_token_may_talk_on_a_websocket(scene: Scene) -> None:
    """As long as it counts: it is looked at again for each turn."""
    scene.key_server.put("socket", scene.signing)
    key_id = keys_command(scene.server.home, "create", "--jwt-kid", "socket").split()[2]
    address, text = scene.server.url.replace("http", "ws") + "/gpt-socket/assistant", token(scene.signing, "socket")
    proxied = {"X-Forwarded-For": "10.0.0.1"}
    with (connect(address, additional_headers={"Authorization": f"Bearer {text}"}) as first,
          connect(address, additional_headers=proxied) as second):
        first.send("hello")
        second.send(f"|KEY|{text}|/KEY|hello")
        for ws in (first, second):
            assert next(frame for frame in ws if "<END" in frame)
        assert "no tokens come in" in keys_command(scene.server.home, "jwt", key_id)
        for ws in (first, second):
            ws.send("hello again")
            with pytest.raises(ConnectionClosed, match="no key takes tokens"):
                ws.recv()


# ---------------------------------------------------------------- BYPASS_AUTHORIZATION

def test_it_is_told_at_the_start_and_by_readyz(scene: Scene) -> None:
    assert "BYPASS_AUTHORIZATION is on" in scene.server.log and "is no https address" in scene.server.log
    assert "BYPASS_AUTHORIZATION is on" in scene.ask("GET", "/readyz").json()["warnings"][0]


def test_a_request_of_this_machine_needs_no_key(scene: Scene) -> None:
    assert scene.who(None) == LOCAL
    answer = scene.ask("POST", "/answer", json={"prompt": "hello", "session_id": "mine"})
    assert answer.status_code == 200 and "mine" in scene.ask("GET", "/answer").json()
    for path in ("/auth/keys", "/models", "/metrics"):
        assert scene.ask("GET", path).status_code == 403, path
    assert scene.ask("GET", "/auth", headers={"Host": "rebound.example"}).status_code == 421
    for headers in ({"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"},
                    {"Origin": "https://page.example"}, {"Sec-Fetch-Site": "cross-site"}, {"X-API-Key": "wrong"}):
        assert scene.ask("GET", "/auth", headers=headers).status_code == 401, headers


def test_old_http_is_taken_for_a_proxys(scene: Scene) -> None:
    host, port = scene.server.url.removeprefix("http://").split(":")
    for version, status in (("1.0", b"401"), ("1.1", b"200")):
        with socket.create_connection((host, int(port)), 30) as raw:
            raw.sendall(f"GET /auth HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert raw.recv(100).split()[1] == status


def test_a_websocket_of_this_machine_needs_no_key(scene: Scene) -> None:
    address = scene.server.url.replace("http", "ws") + "/gpt-socket/assistant"
    with connect(address) as ws:
        for _ in range(2):
            ws.send("hello")
            assert next(frame for frame in ws if "<END" in frame)
    with connect(address, additional_headers={"X-Forwarded-For": "10.0.0.1"}) as ws:
        ws.send("hello")
        with pytest.raises(ConnectionClosed, match="the first frame must be the key"):
            ws.recv()


def test_it_does_not_start_where_others_reach_it(tmp_path: Path, scene: Scene) -> None:
    environment = {**scene.server.environment, "HOST": "0.0.0.0", "DATA_DIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, str(ROOT / "main.py"), "serve"], env=environment, capture_output=True,
                           text=True, timeout=60)
    assert ended.returncode == 1 and "can be reached from other machines" in ended.stderr and not [*tmp_path.iterdir()]
