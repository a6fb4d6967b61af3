"""Whether memory grows: thousands of short requests of every kind, and the slope of what each process holds.

    .venv/bin/python -m tests.bench.bench_memory            5,000 requests to a tiny model; about 2 minutes

Held is RssAnon + VmSwap. The slope is the least-squares line over the samples after the first fifth of the requests
(what is made once is made then, and caches with a bound are filled: the states of sessions get a small one here); it
is to stay below 10 KiB a request in every process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import MASTER, Server, command_line, descendants, make_home

LIMIT = 10.0            # KiB a request
KINDS = ("plain", "session", "stream", "cancel", "schema")
SESSIONS, TURNS = 40, 8         # sessions in use, turns after which one is deleted
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
BOUNDS = {"KV_MEMORY_BYTES": str(4 << 20), "KV_DISK_BYTES": str(16 << 20)}
SAMPLES = 40
AT_ONCE = 8


def held(pid: int) -> float:
    """KiB of memory that are this process's own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:")))


def processes(server: Server) -> dict[str, int]:
    """Process ids by name: serve, web (the master and each worker), runner."""
    assert server.process
    found = {"serve": server.process.pid}
    for pid in descendants(server.process.pid):
        words = command_line(pid).split()
        name = words[2] if len(words) > 2 else "?"
        found[name if name not in found else f"{name} worker {len(found) - 2}"] = pid
    return found


class Client:
    """One connection that sends requests of each kind in turn."""

    def __init__(self, server: Server, runs: threading.Event, numbers: Iterator[int]) -> None:
        self.address = server.url.removeprefix("http://")
        self.runs, self.numbers = runs, numbers
        self.seen: Counter[str] = Counter()
        self.failed: list[BaseException] = []

    def run(self, total: int) -> None:
        try:
            self.connection = http.client.HTTPConnection(self.address, timeout=60)
            for number in self.numbers:
                if number >= total or not self.runs.is_set():
                    return
                self.one(number)
        except BaseException as error:
            self.failed.append(error)

    def one(self, number: int) -> None:
        kind = KINDS[number % len(KINDS)]
        body: dict[str, Any] = {"prompt": f"hello world {number}", "max_tokens": 8}
        if kind == "session":
            body["session_id"] = f"s{number // len(KINDS) % SESSIONS}"
        elif kind == "schema":
            body.update(schema=SCHEMA, max_tokens=24)
        elif kind != "plain":
            body.update(stream=True, max_tokens=64 if kind == "cancel" else 8)
        said = self.send("POST", "/answer", body, leave=kind == "cancel")
        self.seen[f"{kind}, {said}"] += 1
        if kind == "session" and number // len(KINDS) // SESSIONS % TURNS == TURNS - 1:
            self.send("DELETE", f"/answer/{body['session_id']}", None)

    def send(self, method: str, path: str, body: dict[str, Any] | None, leave: bool = False) -> str:
        """Status, and what an error says."""
        headers = {"Authorization": MASTER, "Content-Type": "application/json"}
        self.connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = self.connection.getresponse()
        if leave:
            response.readline()
            self.connection.close()
            return str(response.status)
        reply = response.read()
        return str(response.status) if response.status < 400 else f"{response.status} {json.loads(reply)['message']}"


def soak(server: Server, total: int, pids: dict[str, int]) -> tuple[list[int], dict[str, list[float]], Counter[str]]:
    """Send `total` requests; after how many of them samples were taken, what each process held, what was answered."""
    runs, numbers, lock = threading.Event(), count(), threading.Lock()
    runs.set()
    done: list[int] = []

    def counted() -> Iterator[int]:
        while True:
            with lock:
                done.append(number := next(numbers))
            yield number

    clients = [Client(server, runs, counted()) for _ in range(AT_ONCE)]
    threads = [threading.Thread(target=client.run, args=(total,)) for client in clients]
    for thread in threads:
        thread.start()
    at: list[int] = []
    samples: dict[str, list[float]] = {name: [] for name in pids}
    while any(thread.is_alive() for thread in threads):
        if any(client.failed for client in clients):
            runs.clear()
        elif len(done) >= (len(at) + 1) * total / SAMPLES:
            at.append(min(len(done), total))
            for name, pid in pids.items():
                samples[name].append(held(pid))
        threads[0].join(0.05)
    for client in clients:
        for error in client.failed:
            raise error
    return at, samples, sum((client.seen for client in clients), Counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="requests (default %(default)s)")
    total = parser.parse_args().count
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        config = {"SelectedModel": "p", "p": {"model": "tiny.gguf", "n_ctx": 512, "max_tokens": 64, "parallel": 8}}
        server = Server(make_home(Path(folder) / "home", config), "llama", LOG_LEVEL="WARNING", **BOUNDS).start()
        try:
            pids = processes(server.ready())
            at, samples, seen = soak(server, total, pids)
            print(", ".join(f"{kind}: {number}" for kind, number in sorted(seen.items())))
            later = [index for index, number in enumerate(at) if number >= total / 5]
            slopes = {name: float(np.polyfit([at[i] for i in later], [values[i] for i in later], 1)[0])
                      for name, values in samples.items()}
            for name, slope in slopes.items():
                print(f"{name:14} {samples[name][0] / 1024:7.1f} MiB at first, {samples[name][later[0]] / 1024:7.1f} "
                      f"after a fifth, {samples[name][-1] / 1024:7.1f} at the end: {slope:6.2f} KiB a request")
        finally:
            server.end()
    if worst := [name for name, slope in slopes.items() if slope >= LIMIT]:
        sys.exit(f"grows by {LIMIT:.0f} KiB a request or more: {', '.join(worst)}")


if __name__ == "__main__":
    main()
