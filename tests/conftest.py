"""Fixtures for tests that go through the real door: a started server on a free port, its data in a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).resolve().parent.parent
MASTER = "test-master-key-0123456789-abcdefghij"
STARTER = ROOT / "models" / "starter.gguf"
SECRETS = ("MASTER_KEY", "DATA_KEY", "HF_TOKEN", "FAILPOINT")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:       # a shell's job in the background hands this on to children
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Server:
    """`main.py serve` in a process group of its own. `home` holds data/ and models/, and outlives a restart."""

    def __init__(self, home: Path, runner: str = "fake", **environment: str) -> None:
        self.home = home
        self.runner = runner
        self.data = home / "data"
        clean = {name: value for name, value in os.environ.items() if name not in SECRETS}
        self.environment = {**clean, "HOST": "127.0.0.1", "PORT": "0", "DATA_DIR": str(self.data), "RUNNER": runner,
                            "MODELS_DIR": str(home / "models"), "MASTER_KEY": MASTER, "NUM_THREADS": "1", **environment}
        self.url = ""
        self.process: subprocess.Popen[str] | None = None
        self.prefix: tuple[str, ...] = ()       # of its command line
        self.lines: list[str] = []

    def start(self, wait: float = 60) -> Server:
        self.url = ""
        self.process = subprocess.Popen([*self.prefix, sys.executable, str(ROOT / "main.py"), "serve"], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.environment)
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        deadline = time.monotonic() + wait
        while not self.url:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError("the server did not start:\n" + "".join(self.lines))
            time.sleep(0.02)
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line)
            if line.startswith("Parley answers at "):
                self.url = line.split()[3]

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def stop(self, number: int = signal.SIGTERM, wait: float = 45) -> int:
        """Send `number` to the server; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(wait)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server did not stop within {wait} s:\n{self.log}") from None

    def end(self) -> None:
        """Stop without waiting for running answers."""
        assert self.process is not None
        for _ in range(40):
            if self.process.poll() is not None:
                return
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError(f"the server did not end:\n{self.log}")

    def children(self, word: str) -> list[int]:
        """Process ids of this server's descendants whose command line has `word` (runner, fake-runner, web)."""
        return [pid for pid in descendants(self.process.pid if self.process else 0)
                if word in command_line(pid)]

    def call(self, method: str, path: str, key: str = MASTER, **kwargs: Any) -> requests.Response:
        kwargs.setdefault("timeout", 60)
        return requests.request(method, self.url + path, headers={"Authorization": key, **kwargs.pop("headers", {})},
                                **kwargs)

    def answer(self, prompt: str, session_id: Any = None, key: str = MASTER, **body: Any) -> requests.Response:
        return self.call("POST", "/answer", key, json={"prompt": prompt, "session_id": session_id, **body})

    def stream(self, prompt: str, session_id: Any = None, key: str = MASTER, **body: Any) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer."""
        with self.call("POST", "/answer", key, stream=True,
                       json={"prompt": prompt, "session_id": session_id, "stream": True, **body}) as response:
            assert response.status_code == 200, response.text
            for line in response.iter_lines():
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def make_key(self, **body: Any) -> str:
        response = self.call("POST", "/auth/key", json=body) if body else self.call("POST", "/auth/key")
        assert response.status_code == 201, response.text
        return response.json()["key"]

    def ready(self, wait: float = 60) -> Server:
        """Waits until it can answer; its web process may just be coming back."""
        deadline = time.monotonic() + wait
        while said := self._not_ready():
            assert time.monotonic() < deadline, said + self.log
            time.sleep(0.05)
        return self

    def _not_ready(self) -> str:
        try:
            response = self.call("GET", "/readyz")
        except requests.ConnectionError as error:
            assert self.process is not None and self.process.poll() is None, self.log
            return str(error)
        return "" if response.status_code == 200 else response.text


@contextmanager
def serving(home: Path, runner: str = "fake", **environment: str) -> Iterator[Server]:
    """A started server, which ends with the block."""
    server = Server(home, runner, **environment)
    try:
        yield server.start()
    finally:
        server.end()


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(pid: int) -> list[int]:
    """All process ids below `pid`, from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found = list(parents.get(pid, []))
    for child in found:
        found.extend(parents.get(child, []))
    return found


def make_home(home: Path, config: dict[str, Any] | None = None) -> Path:
    """A folder with data/config.json and a tiny model `tiny.gguf`; the starter model beside it where there is one."""
    from tests.tiny_gguf import write_tiny
    (home / "models").mkdir(parents=True)
    (home / "data").mkdir()
    write_tiny(home / "models" / "tiny.gguf")
    write_tiny(home / "models" / "other.gguf", seed=1)
    if STARTER.exists():
        shutil.copy(STARTER, home / "models" / "starter.gguf")
    config = config or {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 512, "max_tokens": 128},
                        "two": {"model": "other.gguf", "n_ctx": 512, "max_tokens": 128}}
    (home / "data" / "config.json").write_text(json.dumps(config, indent=2))
    return home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path / "home")


@pytest.fixture
def start(home: Path) -> Iterator[Any]:
    """Start servers: `start()` or `start(runner="llama", WEB_WORKERS="4")`; all are stopped at the end."""
    started: list[Server] = []

    def begin(runner: str = "fake", **environment: str) -> Server:
        server = Server(home, runner, **environment)
        started.append(server)
        return server.start()

    yield begin
    for server in started:
        server.end()
