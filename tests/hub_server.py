"""A small hub for tests: the endpoints that huggingface_hub lists a repository with, files by /resolve/, and evils.

    with Hub() as hub:
        hub.add("owner/name", "model.gguf", data)
        hub.evil("model.gguf", cut=1000)            # for the next request of that file; `times` for more
        pull("owner/name", None, folder, hub_url=hub.url)

`hub.requests` lists what was asked, as (method, path, headers). Evils: cut (bytes, then the connection drops), wrong
(other bytes of the same length), length (says another Content-Length), html (a web page with 200), status (with
retry_after), redirect (a Location), loop, stall (sends `cut` bytes and then nothing until the server ends), no_range
(answers 200 to a Range), changed (another ETag), whole_evil (what the listing says is wrong: size or sha256).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class File:
    data: bytes
    lfs: bool = True
    listed_size: int | None = None
    listed_sha256: str | None = None

    @property
    def sha256(self) -> str:
        return self.listed_sha256 or hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        return len(self.data) if self.listed_size is None else self.listed_size


@dataclass
class Evil:
    times: int = 1
    what: dict[str, Any] = field(default_factory=dict)


class Hub:
    """The server, on a free port of 127.0.0.1; a context."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, File]] = {}
        self.plain: dict[str, File] = {}                # path -> file without any hub's headers
        self.evils: dict[str, list[Evil]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.token: str | None = None                   # wanted, when set
        self.listing: Any = None                        # answer to any listing instead of the true one: bytes
        self.closing = threading.Event()
        hub = self

        class Bound(Handler):
            pass
        Bound.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, repo: str, name: str, data: bytes, **more: Any) -> File:
        return self.repos.setdefault(repo, {}).setdefault(name, File(data, **more))

    def evil(self, name: str, times: int = 1, **what: Any) -> None:
        """What to do at the next `times` requests of a path that ends in `name`."""
        self.evils.setdefault(name, []).append(Evil(times, what))

    def next_evil(self, path: str) -> dict[str, Any]:
        for name, evils in self.evils.items():
            if path.endswith(name) and evils:
                evils[0].times -= 1
                what = evils[0].what
                if evils[0].times <= 0:
                    evils.pop(0)
                return what
        return {}

    def asked(self, ending: str) -> list[dict[str, str]]:
        """Headers (lower case) of the requests whose path ends so."""
        return [headers for _, path, headers in self.requests if path.endswith(ending)]

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        pieces = path.strip("/").split("/")
        evil = self.hub.next_evil(path)
        try:
            if evil.get("status"):
                self.say(evil["status"], b"no", {"Retry-After": evil.get("retry_after")})
            elif evil.get("redirect") or evil.get("loop"):
                self.say(302, b"", {"Location": evil.get("redirect") or self.path, **evil.get("headers", {})})
            elif path in self.hub.plain:
                self.file(self.hub.plain[path], evil, hub_headers=False)
            elif self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
                self.say(401, b'{"error":"Invalid username or password."}', {"X-Error-Code": "GatedRepo"})
            elif pieces[:2] == ["api", "models"]:
                self.list("/".join(pieces[2:4]))
            elif len(pieces) > 4 and pieces[2] == "resolve":
                self.resolve("/".join(pieces[:2]), "/".join(pieces[4:]), evil)
            else:
                self.say(404, b"not here", {})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def say(self, status: int, body: bytes, headers: dict[str, Any]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def list(self, repo: str) -> None:
        """GET /api/models/<repo>?blobs=true"""
        if self.hub.listing is not None:
            return self.say(200, self.hub.listing, {"Content-Type": "application/json"})
        if repo not in self.hub.repos:
            return self.say(404, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        siblings = []
        for name, file in self.hub.repos[repo].items():
            entry: dict[str, Any] = {"rfilename": name, "size": file.size, "blobId": "b" * 40}
            if file.lfs:
                entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
            siblings.append(entry)
        body = {"_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "private": False, "tags": [], "downloads": 0,
                "siblings": siblings}
        self.say(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def resolve(self, repo: str, name: str, evil: dict[str, Any]) -> None:
        file = self.hub.repos.get(repo, {}).get(name)
        if file is None:
            return self.say(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        self.file(file, evil, hub_headers=True)

    def file(self, file: File, evil: dict[str, Any], hub_headers: bool) -> None:
        """The file or the rest of it, or something evil in its place."""
        if evil.get("html"):
            return self.say(200, b"<!DOCTYPE html><html><body>Please log in</body></html>" * 3,
                            {"Content-Type": "text/html", **evil.get("headers", {})})
        data = bytes(255 - byte for byte in file.data[64:]) if evil.get("wrong") else file.data[64:]
        data = file.data[:64] + data
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}{"-2" if evil.get("changed") else ""}"'
        headers: dict[str, Any] = {"ETag": None if evil.get("no_etag") else etag, "Accept-Ranges": "bytes"}
        if hub_headers:
            headers |= {"X-Repo-Commit": COMMIT}
            if file.lfs:
                headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": file.size}
        start = self.start(len(data), etag, evil)
        if start >= len(data) and start > 0:
            return self.say(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send_response(206 if start else 200)
        headers["Content-Length"] = evil.get("length", len(data) - start)
        for key, value in headers.items():
            if value is not None:
                self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.body(data[start:], evil)

    def start(self, size: int, etag: str, evil: dict[str, Any]) -> int:
        wanted = self.headers.get("Range", "")
        if not wanted.startswith("bytes=") or evil.get("no_range"):
            return 0
        if self.headers.get("If-Range", etag) != etag:
            return 0
        return int(wanted[6:].split("-")[0])

    def body(self, data: bytes, evil: dict[str, Any]) -> None:
        if "length" in evil:
            data = (data + b"\0" * evil["length"])[:evil["length"]]
        self.wfile.write(data[:evil["cut"]] if "cut" in evil else data)
        self.wfile.flush()
        if evil.get("stall"):
            self.hub.closing.wait(30)
        if "cut" in evil or "length" in evil:
            self.close_connection = True
            self.connection.close()


@contextmanager
def two_hubs() -> Iterator[tuple[Hub, Hub]]:
    with Hub() as one, Hub() as other:
        yield one, other
