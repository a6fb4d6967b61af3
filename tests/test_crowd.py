"""Many clients at once at one real server with a real runner: nobody is reset, nobody's answer is another's, and
those who left leave nothing behind (rows N5, N6, I5)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MASTER, Server, make_home
from tests.test_serve import in_use, stats, wait_for

pytestmark = pytest.mark.model
QUEUE, GREEDY, SLOTS = 512, 128, 4      # places in the queue, of one key in it, and in the runner
FIRST = 300             # of a thousand are one key's
CONFIG = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 512, "max_tokens": 16, "parallel": SLOTS,
                                          "temperature": 0}}
AT_ONCE = 50
PATIENCE = 120.0            # seconds: "it does not hang"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = make_home(tmp_path_factory.mktemp("crowd") / "home", CONFIG)
    server = Server(home, "llama", WEB_THREADS="1024", MAX_QUEUE=str(QUEUE), MAX_QUEUE_PER_KEY=str(GREEDY),
                    LOG_LEVEL="WARNING", KV_MEMORY_BYTES=str(4 << 20), KV_DISK_BYTES=str(16 << 20))
    try:
        yield server.start().ready()
    finally:
        server.end()


async def begin(server: Server, key: str, **body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of its own that has asked."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps(body).encode()
    writer.write(f"POST /answer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {key}\r\nContent-Type: "
                 f"application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()
    return reader, writer


async def ask(server: Server, key: str, **body: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers by their lower-case names, and the reply."""
    reader, writer = await begin(server, key, **body)
    head, _, reply = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, json.loads(reply)


def together(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    async def everyone() -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*works), PATIENCE)
    return asyncio.run(everyone())


def at_rest(server: Server) -> bool:
    return (in_use(server), stats(server)["running"], stats(server)["waiting"]) == (0, 0, 0)


def test_a_thousand_at_once_are_answered_or_told_when_to_come_back(server: Server) -> None:
    """Row N6. They all wait at the runner's door before it says the first word; first one key, which asks for more
    than its share of the queue, then six others, together for more than there is."""
    keys = [server.make_key() for _ in range(7)]
    asked = [(keys[0 if n < FIRST else 1 + n % 6], f"s{n}", f"{n} is my number") for n in range(1000)]
    (runner,) = server.children("main.py runner")
    first_wait = asyncio.Event()

    async def asked_in_turn(n: int, key: str, sid: str, prompt: str) -> tuple[int, dict[str, str], dict[str, Any]]:
        if n >= FIRST:
            await first_wait.wait()
        return await ask(server, key, session_id=sid, prompt=prompt)

    async def let_them_in() -> None:
        try:
            await asyncio.to_thread(wait_for, lambda: in_use(server) == FIRST, PATIENCE)
            first_wait.set()
            await asyncio.to_thread(wait_for, lambda: in_use(server) == len(asked), PATIENCE)
        finally:
            os.kill(runner, signal.SIGCONT)

    os.kill(runner, signal.SIGSTOP)
    *told, _ = together(*(asked_in_turn(n, *one) for n, one in enumerate(asked)), let_them_in())
    greedy, others = ([status for status, _, _ in part] for part in (told[:FIRST], told[FIRST:]))
    assert {200, 429} <= set(greedy) <= {200, 429, 503} and set(others) == {200, 503}
    assert (greedy + others).count(200) >= QUEUE
    for (key, sid, prompt), (status, headers, reply) in list(zip(asked, told, strict=True))[::3]:
        if status == 200:
            turns = server.call("GET", f"/answer/{sid}", key).json()["turns"]
            assert [turn["content"] for turn in turns] == [prompt, reply["result"]]
        else:
            assert int(headers["retry-after"]) >= 1
            assert reply["error"]["code"] == ("rate_limited" if status == 429 else "unavailable")
    assert at_rest(server) and server.children("main.py runner") == [runner]


def holdings(server: Server) -> dict[str, tuple[int, int, float]]:
    """Of each process: open files, threads, and MiB of its own."""
    found = {}
    for pid in [server.process.pid, *server.children("main.py")]:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        figure = {line.split(":")[0]: int(line.split()[1]) for line in status
                  if line.startswith(("Threads:", "RssAnon:", "VmSwap:"))}
        found[str(pid)] = (len(list(Path(f"/proc/{pid}/fd").iterdir())), figure["Threads"],
                           (figure["RssAnon"] + figure.get("VmSwap", 0)) / 1024)
    return found


def test_a_thousand_who_ask_and_leave_leave_nothing_behind(server: Server) -> None:
    """Row N5."""
    async def leave(n: int) -> None:
        reader, writer = await begin(server, MASTER, prompt=f"hello {n}", max_tokens=400, stream=n % 2 == 0)
        if n % 4 == 0:
            await reader.readuntil(b"data: ")
        writer.transport.abort() if n % 3 == 0 else writer.close()

    def crowd(first: int, count: int) -> None:
        async def rest() -> None:
            for n in range(first, first + count, AT_ONCE):
                await asyncio.gather(*map(leave, range(n, n + AT_ONCE)))
        together(rest())
        wait_for(lambda: at_rest(server))

    crowd(0, 200)
    before = holdings(server)
    crowd(200, 1000)
    assert server.answer("hello").status_code == 200
    after = holdings(server)
    assert after.keys() == before.keys(), "no process was replaced"
    for pid, (files, threads, memory) in after.items():
        assert files <= before[pid][0] + 4, (before, after)
        assert threads <= before[pid][1] + AT_ONCE, "the pool may have grown, by those who came together"
        assert memory - before[pid][2] < 10, (before, after)
