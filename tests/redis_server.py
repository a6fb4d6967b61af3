"""A Redis of the test's own, over a Unix socket or a port: `redis-server` of this machine (Debian: redis-server)."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAM = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(PROGRAM is None, reason="there is no redis-server on this machine: apt-get install "
                                                         "redis-server (./setup.sh test does it as root)")


class RedisServer:
    """It keeps what it acknowledged through a kill. `options` as on its command line."""

    def __init__(self, home: Path, *options: str, port: int = 0) -> None:
        self.home, self.options, self.port = home, options, port
        home.mkdir(parents=True, exist_ok=True)
        self.socket = home / "redis.sock"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0" if self.port else f"unix://{self.socket}"

    def start(self) -> RedisServer:
        assert PROGRAM is not None
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket), "--dir",
             str(self.home), "--save", "", "--appendonly", "yes", "--appendfsync", "always", *self.options],
            stdout=(self.home / "log").open("ab"), stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.home / "log").read_text()
            time.sleep(0.01)
        return self

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(self.socket))
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def running(*options: str, port: int = 0) -> Iterator[RedisServer]:
    """A started one in a folder of its own; a socket's path is short, so it is none of pytest's."""
    home = Path(tempfile.mkdtemp(prefix="parley-redis-", dir="/tmp"))
    server = RedisServer(home, *options, port=port)
    try:
        yield server.start()
    finally:
        server.kill()
        shutil.rmtree(home)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
