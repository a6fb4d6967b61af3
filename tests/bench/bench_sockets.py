"""500 idle websockets and 50 that stream, on a server with a scripted runner: is it still there for others?

    .venv/bin/python -m tests.bench.bench_sockets

Prints what /healthz took on new connections while all were open, the memory of an idle socket, and the pieces a second.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

from tests.conftest import Server, make_home

IDLE, STREAMS = 500, 50
PER_KEY = 100
PROMPT = "!tokens 400 !sleep 0.05"      # 20 pieces a second, for 20 seconds
CONFIG = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 4096, "max_tokens": 1000, "parallel": 64}}
# Asks for /healthz on new connections, in a process of its own: this one is busy with its sockets.
WATCH = """
import http.client, select, sys, time
while not select.select([sys.stdin], [], [], 0.05)[0]:
    began = time.monotonic()
    connection = http.client.HTTPConnection(sys.argv[1], timeout=10)
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()
    print((time.monotonic() - began) * 1000, flush=True)
"""


@dataclass
class Figures:
    """What was measured. `health`: milliseconds of each request."""

    health: list[float] = field(default_factory=list)
    open_seconds: float = 0.0
    idle_bytes: int = 0             # of memory, of one idle socket
    pieces: int = 0
    seconds: float = 0.0
    complete: int = 0               # streams that came to their end
    alive: int = 0                  # idle sockets that could still ask at the end

    @property
    def worst(self) -> float:
        """The 99th of 100."""
        return statistics.quantiles(self.health, n=100)[98]


def measure(server: Server, idle: int = IDLE, streams: int = STREAMS, prompt: str = PROMPT) -> Figures:
    return asyncio.run(_measure(server, idle, streams, prompt))


async def _measure(server: Server, idle: int, streams: int, prompt: str) -> Figures:
    figures = Figures()
    keys = [server.make_key() for _ in range(-(-(idle + streams) // PER_KEY))]
    address = server.url.replace("http", "ws") + "/gpt-socket/assistant"

    async def opened(number: int) -> ClientConnection:
        async with gate:
            return await connect(address, additional_headers={"Authorization": keys[number // PER_KEY]},
                                 open_timeout=60, ping_interval=None)

    gate = asyncio.Semaphore(20)
    before, began = _memory(server), time.monotonic()
    quiet = await asyncio.gather(*(opened(number) for number in range(idle)))
    figures.open_seconds = time.monotonic() - began
    figures.idle_bytes = (_memory(server) - before) // idle
    busy = await asyncio.gather(*(opened(idle + number) for number in range(streams)))
    began = time.monotonic()
    watch = await asyncio.create_subprocess_exec(sys.executable, "-c", WATCH, server.url.removeprefix("http://"),
                                                 stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    counts = await asyncio.gather(*(_streamed(socket, prompt) for socket in busy))
    figures.seconds = time.monotonic() - began
    told, _ = await watch.communicate(b"")      # it ends with its standard input
    figures.health = [float(line) for line in told.split()]
    figures.pieces, figures.complete = sum(counts), sum(count > 0 for count in counts)
    figures.alive = sum(count > 0 for count in await asyncio.gather(
        *(_streamed(socket, "hello") for socket in quiet[::10])))
    await asyncio.gather(*(socket.close() for socket in (*quiet, *busy)))
    return figures


async def _streamed(socket: ClientConnection, prompt: str) -> int:
    """Pieces of a whole answer."""
    await socket.send(f"{prompt}")
    pieces = 0
    async for frame in socket:
        if frame == "<END>":
            return pieces
        assert not str(frame).startswith("Error"), frame
        pieces += 1
    return 0


def _memory(server: Server) -> int:
    """Bytes that the web processes have to themselves."""
    found = 0
    for pid in server.children("web"):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean", "Private_Dirty")):
                found += int(line.split()[1]) * 1024
    return found


def main() -> None:
    server = Server(make_home(Path(tempfile.mkdtemp()) / "home", CONFIG)).start()
    try:
        figures = measure(server.ready())
    finally:
        server.end()
    print(f"{IDLE} idle websockets, opened in {figures.open_seconds:.1f} s, {figures.idle_bytes / 1024:.0f} KiB each")
    print(f"{figures.complete} streams: {figures.pieces / figures.seconds:.0f} pieces/s of {STREAMS * 20} asked for")
    print(f"/healthz: median {statistics.median(figures.health):.1f} ms, 99 % {figures.worst:.1f} ms, "
          f"worst {max(figures.health):.1f} ms of {len(figures.health)}")


if __name__ == "__main__":
    main()
