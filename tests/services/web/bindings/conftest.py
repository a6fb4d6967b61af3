"""A started server with a binding of each platform, and the platforms' own servers as one on this machine."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.conftest import Server, make_home
from tests.services.web.conftest import wait_until

SIGNING_SECRET = "8f742231b10e8888abcd99yyyzzz85a5"     # of Slack's documentation
SECURITY_TOKEN = "vqF0En+Z0ucuRTM/01o2GuhMH3hKKk/N2bOmlM31zaA="     # of Teams'
DISCORD = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC_KEY = DISCORD.public_key().public_bytes_raw().hex()


@dataclass
class Call:
    """What the platform was sent."""

    method: str
    path: str
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Platform:
    """Remembers what it was sent, and answers 200 `{"ok": true}`, or first what stands in `script`."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    script: deque[tuple[int, dict[str, str], str]] = field(default_factory=deque)

    def wait(self, count: int = 1) -> list[Call]:
        wait_until(lambda: len(self.calls) >= count)
        return self.calls

    def clear(self) -> None:
        self.calls.clear()
        self.script.clear()


def serve(platform: Platform) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            platform.calls.append(Call(self.command, self.path, json.loads(body), dict(self.headers)))
            status, headers, text = platform.script.popleft() if platform.script else (200, {}, '{"ok": true}')
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_PATCH = reply

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    platform.url = f"http://127.0.0.1:{server.server_port}"
    return server


@pytest.fixture(scope="session")
def platform_server():
    platform = Platform()
    server = serve(platform)
    yield platform
    server.shutdown()
    server.server_close()


@pytest.fixture
def platform(platform_server):
    platform_server.clear()
    return platform_server


def write_bindings(data, values):
    path = data / "bindings.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(values, indent=2))


def bindings(platform, key):
    """The file of the started server: `key` is the id of a key."""
    common = {"personality": "assistant", "key": key}
    slack = {"kind": "slack", **common, "signing_secret": {"env": "TEST_SLACK_SECRET"}, "bot_token": "xoxb-1",
             "api": f"{platform.url}/api", "hooks": f"{platform.url}/hooks"}
    return {"helpdesk": slack, "other": {**slack, "signing_secret": "another secret"},
            "unknown": {**slack, "personality": "nobody"},
            "guild": {"kind": "discord", **common, "public_key": PUBLIC_KEY, "api": f"{platform.url}/discord"},
            "team": {"kind": "teams", **common, "security_token": SECURITY_TOKEN},
            "hasty": {"kind": "teams", **common, "security_token": SECURITY_TOKEN, "wait_seconds": 0.0},
            "posting": {"kind": "teams", **common, "security_token": SECURITY_TOKEN, "wait_seconds": 0.0,
                        "later_url": f"{platform.url}/workflow?sig=abc"}}


@pytest.fixture(scope="session")
def server(tmp_path_factory, platform_server):
    config = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 4096, "max_tokens": 4000, "parallel": 4}}
    home = make_home(tmp_path_factory.mktemp("bindings") / "home", config)
    started = Server(home, TEST_SLACK_SECRET=SIGNING_SECRET, NO_PROXY="127.0.0.1").start().ready()
    started.bot_key = new_key(started)
    write_bindings(started.data, bindings(platform_server, started.bot_key))
    started.ready()         # which reads them
    yield started
    started.end()


def new_key(server):
    response = server.call("POST", "/auth/key", json={"name": "bot"})
    assert response.status_code == 201, response.text
    return response.json()["id"]


# ---------------------------------------------------------------- requests as the platforms sign them

def post(server, path, raw, headers):
    return requests.post(server.url + path, data=raw, headers=headers, timeout=30)


def slack_headers(raw, secret=SIGNING_SECRET, at=None, form=False):
    at = str(int(time.time()) if at is None else at)
    signature = hmac.new(secret.encode(), f"v0:{at}:".encode() + raw, hashlib.sha256).hexdigest()
    return {"X-Slack-Signature": f"v0={signature}", "X-Slack-Request-Timestamp": at,
            "Content-Type": "application/x-www-form-urlencoded" if form else "application/json"}


def discord_headers(raw, at=None, key=DISCORD):
    at = str(int(time.time()) if at is None else at)
    return {"X-Signature-Ed25519": key.sign(at.encode() + raw).hex(), "X-Signature-Timestamp": at,
            "Content-Type": "application/json"}


def teams_headers(raw, token=SECURITY_TOKEN):
    signature = base64.b64encode(hmac.new(base64.b64decode(token), raw, hashlib.sha256).digest()).decode()
    return {"Authorization": f"HMAC {signature}", "Content-Type": "application/json; charset=utf-8"}
