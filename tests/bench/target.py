"""What is measured: ours, a started server, and the peer, llama.cpp's own; both are asked over HTTP by the same client.

The client is one thread and one connection a request, reading whole buffers, so that it takes little of the cores that
the servers need; what it takes is measured as well (`cpu_share`).
"""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.peer import PeerProcess
from tests.conftest import MASTER, Server, descendants

SETTLED = 0.03              # share of a core below which a server is at rest
PATIENCE = 30.0             # seconds that it gets for it
TEMPLATE = "{chat_history}{input}"
TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Setup:
    """How both servers are started: the same file, threads, slots and context of each slot."""

    model: Path
    slots: int
    n_ctx: int
    threads: int
    template: str | None = TEMPLATE         # ours only: the peer is sent the whole text. None: the model's own
    k: int = 5


@dataclass(frozen=True)
class Ask:
    """One request. `text`: the new text; `window`: the earlier turns, which ours has in `session` itself."""

    text: str
    tokens: int
    stream: bool = False
    greedy: bool = False
    session: str | None = None
    key: str | None = None
    head: str = ""                          # what stands in our template before `text`
    window: list[tuple[str, str]] | None = None     # None: a text as it is; else a chat


@dataclass
class Reply:
    """What came, and when (seconds after the request was sent)."""

    text: str = ""
    prompt: int = 0             # tokens of the prompt,
    processed: int = 0          # of them those that were computed for this request
    completion: int = 0
    first: float = 0.0
    wall: float = 0.0
    times: list[float] = field(default_factory=list)        # of each piece of a stream, by time.monotonic()


class Target:
    """A server that can be started, stopped and asked."""

    name = ""
    address = ""

    def start(self) -> None:
        """Start it and wait until it answers."""
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def pids(self) -> list[int]:
        """The processes of the server."""
        raise NotImplementedError

    def make_key(self) -> str | None:
        """The API key of one more client; None where there are no keys."""
        return None

    def request(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        """Path and body."""
        raise NotImplementedError

    def piece(self, event: dict[str, Any]) -> str:
        """The text that an event of a stream brings."""
        raise NotImplementedError

    def fill(self, reply: Reply, final: dict[str, Any]) -> None:
        """Set text and counts from the last event, or from the whole answer."""
        raise NotImplementedError

    # ------------------------------------------------------------ asking

    def ask(self, ask: Ask, stop: threading.Event | None = None,
            heard: Callable[[float], Any] | None = None) -> Reply:
        """The answer to `ask`. A stream ends early when `stop` is set; `heard` is told the time of each piece."""
        path, body = self.request(ask)
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=600)
        headers = {"Content-Type": "application/json", "Authorization": ask.key or MASTER}
        reply = Reply()
        began = time.monotonic()
        connection.request("POST", path, json.dumps(body).encode(), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{self.name}: {response.status} {response.read()[:500]!r}")
        if ask.stream:
            self._read(response, reply, stop, heard)
        else:
            self.fill(reply, json.loads(response.read()))
        reply.wall = time.monotonic() - began
        reply.first = reply.times[0] - began if reply.times else reply.wall
        connection.close()
        return reply

    def _read(self, response: http.client.HTTPResponse, reply: Reply, stop: threading.Event | None,
              heard: Callable[[float], Any] | None) -> None:
        said = []
        for event in _events(response):
            if "error" in event:
                raise RuntimeError(f"{self.name}: {event['error']}")
            if text := self.piece(event):
                said.append(text)
                reply.times.append(time.monotonic())
                if heard:
                    heard(reply.times[-1])
            if stop and stop.is_set():
                return
            self.fill(reply, event)
        reply.text = "".join(said)

    def settle(self) -> None:
        """Wait until the server rests: what it does between requests is not to disturb the other's measurement."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            before = cpu_seconds(self.pids())
            time.sleep(0.25)
            if cpu_seconds(self.pids()) - before <= SETTLED * 0.25 + TICK:
                return


class Ours(Target):
    name = "ours"

    def __init__(self, setup: Setup, folder: Path) -> None:
        self.setup, self.home = setup, folder
        profile: dict[str, Any] = {
            "model": setup.model.name, "n_ctx": setup.n_ctx, "parallel": setup.slots, "n_threads": setup.threads,
            "k": setup.k, "max_tokens": 64, "temperature": 0.8, "top_k": 40, "top_p": 0.95}
        form = {"chat_format": "model"} if setup.template is None else {"template": setup.template}
        (folder / "data").mkdir(parents=True, exist_ok=True)
        config = {"SelectedModel": "bench", "bench": {**profile, **form}}
        (folder / "data" / "config.json").write_text(json.dumps(config))
        self.server = Server(folder, "llama", MODELS_DIR=str(setup.model.parent), NUM_THREADS=str(setup.threads))

    def start(self) -> None:
        try:
            self.server.start().ready()
        except AssertionError:
            self.server.end()
            told = [line for line in self.server.lines if "parley.access" not in line and "not_ready" not in line]
            raise RuntimeError("ours does not answer; its log ends:\n" + "".join(told)[-3000:]) from None
        self.address = self.server.url

    def stop(self) -> None:
        self.server.stop()

    def pids(self) -> list[int]:
        assert self.server.process
        return [self.server.process.pid, *descendants(self.server.process.pid)]

    def make_key(self) -> str:
        return self.server.make_key()

    def request(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        body = {"prompt": ask.text, "session_id": ask.session, "max_tokens": ask.tokens, "stream": ask.stream}
        return "/answer", {**body, "temperature": 0} if ask.greedy else body

    def piece(self, event: dict[str, Any]) -> str:
        return event.get("delta", "")

    def fill(self, reply: Reply, final: dict[str, Any]) -> None:
        if "usage" not in final:
            return
        usage = final["usage"]
        reply.text, reply.completion, reply.prompt = final["result"], usage["completion_tokens"], usage["prompt_tokens"]
        reply.processed = usage["prompt_tokens_details"]["processed_tokens"]


class Peer(Target):
    """llama.cpp's server; its defaults but for what `Setup` says, and the samplers that ours has."""

    name = "llama.cpp"

    def __init__(self, setup: Setup, binary: str | None) -> None:
        self.setup = setup
        self.process = PeerProcess(setup.model, setup.slots, setup.n_ctx, setup.threads, binary)

    def start(self) -> None:
        self.address = self.process.start()

    def stop(self) -> None:
        self.process.stop()

    def pids(self) -> list[int]:
        return self.process.pids()

    def request(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "stream": ask.stream, "cache_prompt": True, "ignore_eos": True, "temperature": 0 if ask.greedy else 0.8,
            "top_k": 40, "top_p": 0.95, "samplers": ["top_k", "top_p", "temperature"]}
        if ask.window is None:
            return "/completion", {**body, "prompt": ask.head + ask.text, "n_predict": ask.tokens}
        said = [{"role": role, "content": text} for turn in ask.window
                for role, text in zip(("user", "assistant"), turn, strict=True)]
        messages = [*said, {"role": "user", "content": ask.text}]
        return "/v1/chat/completions", {**body, "messages": messages, "max_tokens": ask.tokens}

    def piece(self, event: dict[str, Any]) -> str:
        if "content" in event:
            return event["content"]
        choices = event.get("choices") or [{}]
        return choices[0].get("delta", {}).get("content") or ""

    def fill(self, reply: Reply, final: dict[str, Any]) -> None:
        if "timings" not in final:
            return
        timings = final["timings"]
        choices = final.get("choices")
        reply.text = final.get("content") or (choices[0].get("message", {}).get("content") if choices else "") or ""
        reply.processed, reply.completion = timings["prompt_n"], timings["predicted_n"]
        reply.prompt = timings["prompt_n"] + timings["cache_n"]


@contextmanager
def pair(setup: Setup, peer: str | None) -> Iterator[list[Target]]:
    """Ours and the peer, started and at rest."""
    with tempfile.TemporaryDirectory() as folder:
        targets: list[Target] = [Ours(setup, Path(folder)), Peer(setup, peer)]
        started = []
        try:
            for target in targets:
                target.start()
                started.append(target)
            for target in targets:
                target.settle()
            yield targets
        finally:
            for target in started:
                target.stop()


def at_once(target: Target, asks: list[Ask]) -> tuple[list[Reply], float, float]:
    """All of them at once: the replies, the seconds that all took, and the share of a core that the client took."""
    replies: list[Reply | BaseException] = [Reply()] * len(asks)

    def one(index: int) -> None:
        try:
            replies[index] = target.ask(asks[index])
        except BaseException as error:
            replies[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(asks))]
    began, worked = time.monotonic(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    cpu_share = (time.process_time() - worked) / seconds
    failed = [reply for reply in replies if isinstance(reply, BaseException)]
    if failed:
        raise failed[0]
    ends = [reply for reply in replies if isinstance(reply, Reply)]
    short = [end.completion for end, ask in zip(ends, asks, strict=True) if end.completion != ask.tokens]
    if short:
        raise RuntimeError(f"{target.name}: answers of {short} tokens, {asks[0].tokens} asked: nothing to compare")
    return ends, seconds, cpu_share


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes so far."""
    total = 0
    for pid in pids:
        try:
            values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += int(values[11]) + int(values[12])
    return total * TICK


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON events of a stream of server-sent ones."""
    while line := response.readline():
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])
