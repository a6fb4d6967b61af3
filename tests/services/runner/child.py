"""A runner as a child process, and the few words that its tests say to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from services.wire import (
    Channel,
    Done,
    Failed,
    Generate,
    GetStats,
    Message,
    Piece,
    Queued,
    Ready,
    Sampling,
    Stats,
    connect,
)

ROOT = Path(__file__).resolve().parents[3]
KEY = b"0123456789abcdef"
GREEDY = Sampling(temperature=0)
SOON = 30.0             # seconds: "did not hang", on any machine
STARTER = ROOT / "models" / "starter.gguf"


@dataclass
class Child:
    process: subprocess.Popen[bytes]
    address: str
    ready: Ready

    def connect(self) -> Channel:
        return connect(self.address, KEY)

    def stats(self) -> Stats:
        with self.connect() as channel:
            stats = channel.ask(GetStats())
        assert isinstance(stats, Stats)
        return stats

    def wait_until(self, condition: Callable[[Stats], bool]) -> None:
        until = time.monotonic() + SOON
        while not condition(self.stats()):
            assert time.monotonic() < until, self.stats()
            time.sleep(0.01)


Start = Callable[..., Child]


def launch(started: list[subprocess.Popen[bytes]], folder: Path, model: Path, *, max_queue: int = 64,
           limits: dict[str, Any] | None = None, **spec: Any) -> Child:
    """Start a runner of `model` and wait until it is ready."""
    process = launch_raw(started)
    address = os.path.join(tempfile.mkdtemp(dir=folder), "s")
    spec = {"model": str(model), "n_ctx": 300, "parallel": 4, "n_threads": 1, **spec}
    tell(process, {"address": address, "authkey": KEY.hex(), "spec": spec,
                   "limits": {"max_queue": max_queue, "kv_memory_bytes": 1 << 26, **(limits or {})}})
    assert process.stdout
    return Child(process, address, msgspec.json.decode(process.stdout.readline(), type=Ready))


def launch_raw(started: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "import sys; from services.runner.server import main; sys.exit(main())"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    started.append(process)
    return process


def tell(process: subprocess.Popen[bytes], start: dict[str, Any]) -> None:
    assert process.stdin
    process.stdin.write(json.dumps(start).encode() + b"\n")
    process.stdin.flush()


def ask(prompt: str, *, id: str = "r", owner: str = "o", max_tokens: int = 40, **more: Any) -> Generate:
    return Generate(id=id, owner=owner, prompt=[prompt], max_tokens=max_tokens, sampling=GREEDY, **more)


def hear(channel: Channel) -> Message:
    message = channel.receive(SOON)
    assert message is not None, "the runner is silent"
    return message


def answer(channel: Channel, request: Generate | None = None) -> tuple[str, Done | Failed]:
    """The whole answer on a connection: its text and its one end."""
    if request:
        channel.send(request)
    text = ""
    while isinstance(message := hear(channel), (Piece, Queued)):
        text += message.text if isinstance(message, Piece) else ""
    assert isinstance(message, (Done, Failed))
    return text, message


def one(child: Child, request: Generate) -> tuple[str, Done | Failed]:
    with child.connect() as channel:
        return answer(channel, request)
