"""Two servers and two executors, each pair in a network namespace of its own as on a machine of its own, and one Redis
that both reach by network alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.settings import Settings
from services.store import redis_client
from tests.conftest import ROOT, Server, descendants, make_home
from tests.redis_server import free_port, needs_redis, running

PASSWORD = "of-this-test-alone"
LONG = "!tokens 2000 !sleep 0.01"


def may_make_namespaces() -> bool:
    name = f"ply-{os.getpid()}"
    if shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return False
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return True


pytestmark = [needs_redis, pytest.mark.skipif(not may_make_namespaces(), reason="network namespaces cannot be made "
                                              "here: that needs root, and ip (Debian: iproute2)")]


@dataclass(frozen=True)
class Network:
    """`inside` and `outside`: addresses of the namespace and of this machine towards it (RFC 2544)."""

    name: str
    inside: str
    outside: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return "ip", "netns", "exec", self.name


@contextmanager
def network(number: int) -> Iterator[Network]:
    base = 4 * number
    name, outer = f"ply-{os.getpid()}-{number}", f"ply{os.getpid() % 100000}x{number}"
    near = f"198.18.{os.getpid() % 250}"
    made = Network(name, f"{near}.{base + 2}", f"{near}.{base + 1}")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)
    ip("netns", "add", name)
    try:
        ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("address", "add", f"{made.outside}/30", "dev", outer)
        ip("link", "set", outer, "up")
        for words in (("address", "add", f"{made.inside}/30", "dev", "eth0"), ("link", "set", "eth0", "up"),
                      ("link", "set", "lo", "up")):
            ip("-n", name, *words)
        yield made
    finally:
        ip("netns", "delete", name)         # and its link with it


@dataclass
class Scene:
    servers: list[Server]
    workers: list[subprocess.Popen[str]]
    url: str


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with ExitStack() as held:
        networks = [held.enter_context(network(number)) for number in (0, 1)]
        redis = held.enter_context(running("--bind", *(one.outside for one in networks), "--requirepass", PASSWORD,
                                           port=free_port()))
        servers, workers = [], []
        for number, one in enumerate(networks):
            shared = {"STORE": "redis", "REDIS_HOST": one.outside, "REDIS_PORT": str(redis.port),
                      "REDIS_PWD": PASSWORD, "SUMMARY_MINIMUM_PAYLOAD_LENGTH": "1"}
            homes = [make_home(tmp_path_factory.mktemp(f"{kind}{number}") / "home") for kind in ("server", "worker")]
            server = Server(homes[0], HOST=one.inside, ENABLED_MODULES="summaries:dispatcher", **shared)
            server.prefix = one.prefix
            held.callback(server.end)
            servers.append(server.start())
            workers.append(held.enter_context(working(homes[1], one, server.environment)))
        yield Scene([server.ready() for server in servers], workers,
                    f"redis://:{PASSWORD}@{networks[0].outside}:{redis.port}/0")


@contextmanager
def working(home: Path, where: Network, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`main.py work` in a namespace."""
    process = subprocess.Popen([*where.prefix, sys.executable, str(ROOT / "main.py"), "work"], text=True,
                               stdout=subprocess.PIPE, env={**environment, "DATA_DIR": str(home / "data"),
                                                            "MODELS_DIR": str(home / "models"), "DRAIN_TIMEOUT": "1"})
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Parley does jobs from Redis")
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait(30)


def kill(process: subprocess.Popen[Any] | None) -> None:
    assert process is not None
    for pid in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_jobs_taken_by_either_are_done_by_both(scene: Scene) -> None:
    key = scene.servers[0].make_key()
    ids = []
    for number in range(12):
        reply = scene.servers[number % 2].call("POST", "/summaries/v1/process-text", key,
                                               json={"text": f"!sleep 0.1 !echo job {number} is done", "prompt": "x"})
        assert reply.status_code == 200, reply.text
        ids.append(reply.json()["id"])

    def result(number: int) -> Any:
        return scene.servers[number % 2 - 1].call("GET", f"/summaries/v1/job/{ids[number]}", key).json()["result"]
    until(lambda: all(result(number) == f"job {number} is done" for number in range(12)))
    kill(scene.workers[0])
    again = scene.servers[0].call("POST", "/summaries/v1/process-text", key, json={"text": "!echo by the other",
                                                                                   "prompt": "x"}).json()["id"]
    until(lambda: scene.servers[1].call("GET", f"/summaries/v1/job/{again}", key).json()["result"] == "by the other")


def test_a_session_goes_on_and_outlives_its_server(scene: Scene) -> None:
    one, two = scene.servers
    key = one.make_key()
    for server, prompt in ((one, "My name is Ada"), (two, "What is my name?"), (one, "third")):
        assert server.answer(prompt, "s", key=key).status_code == 200
    stream = one.stream(LONG, "s", key=key, max_tokens=2000)
    next(stream)
    kill(one.process)
    client = redis_client.connect(Settings(redis_url=scene.url))
    (lock,) = client.keys("*:sessions:lock:*")
    client.pexpire(lock, 200)               # which saves the test the rest of the lease
    assert two.answer("fifth", "s", key=key).status_code == 200
    turns = two.call("GET", "/answer/s", key).json()["turns"]
    assert [turn["content"] for turn in turns if turn["role"] == "user"] == ["My name is Ada", "What is my name?",
                                                                            "third", LONG, "fifth"]
    assert "Ada" in turns[3]["content"] and sum(turn["role"] == "assistant" for turn in turns) == 4
