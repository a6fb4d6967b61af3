"""How long a summary takes: a job of ours beside the same calls, one after the other, to llama.cpp's own server.

    python -m tests.bench.bench_summaries [--peer PATH] [--model 0.5b] [--json FILE]

skynet's table (8,000 and 16,000 characters) on a model of random weights. Its words are tokens, so the texts have as
many of them as so many characters of English have. The peer is asked for the very same: each part of the text with the
same prompt, then what came out for them, each time in as many tokens as ours. Left to itself such a model soon
repeats itself, which ours guesses; so there are two rows: as it comes, the most that guessing can bring, and with
penalties that keep both from writing any word twice, where it brings nothing. What a real model writes of a text, which
it copies in part, lies between them. Models and the peer as in `tests.bench.bench_peer`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from auth.keys import Key
from services.jobs.asking import Asking, Work
from services.jobs.chunks import chunks
from tests.bench import peer, shapes
from tests.bench.bench_peer import processor
from tests.bench.rows import Report, Row, load, table
from tests.bench.target import Ours, Setup, Target, pair
from tests.conftest import MASTER

SIZES = (8000, 16000)       # characters
PER_TOKEN = 4               # characters of English that a token has
SLOTS, N_CTX = 4, 2048
ANSWER = 160                # tokens of each answer
POLL = 0.1                  # seconds
PENALTIES: dict[str, float] = {"repeat_last_n": 256, "frequency_penalty": 2.0, "presence_penalty": 2.0,
                               "repeat_penalty": 2.0}
KINDS = {"both": ({}, PENALTIES), "as-it-comes": ({},), "no-word-twice": (PENALTIES,)}
BENCH = "summaries"
NOBODY = Key(id="", name="", prefix="", scopes=(), profiles=None, created="", expires_at=None, requests_per_minute=None,
             max_parallel=None, revoked_at=None, old_secret_until=None)


def penalise(ours: Ours, penalties: dict[str, float]) -> None:
    """Have the profile of a server that runs already take these; the peer is sent them."""
    path = ours.home / "data" / "config.json"
    config = json.loads(path.read_text())
    profile = {name: value for name, value in config["bench"].items() if name not in PENALTIES}
    path.write_text(json.dumps({**config, "bench": profile | penalties}))


def asked(target: Target, method: str, path: str, body: Any = None) -> Any:
    """The JSON that a server replies with."""
    connection = http.client.HTTPConnection(target.address.removeprefix("http://"), timeout=600)
    headers = {"Content-Type": "application/json", "Authorization": MASTER}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    found = json.loads(response.read())
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"{target.name}: {response.status} {found}")
    return found


def by_job(target: Target, text: str) -> tuple[float, int]:
    """Seconds until a job of ours is seen to be done, and the parts that the text was cut in."""
    began = time.monotonic()
    body = {"text": text, "hint": "text", "max_completion_tokens": ANSWER}
    path = "/summaries/v1/job/" + asked(target, "POST", "/summaries/v1/summary", body)["id"]
    while (job := asked(target, "GET", path))["status"] in ("pending", "running"):
        time.sleep(POLL)
    if job["status"] != "success":
        raise RuntimeError(f"ours: {job['result']}")
    calls = job["chunks_done"]
    if job["usage"]["completion_tokens"] != calls * ANSWER:
        raise RuntimeError(f"ours wrote {job['usage']} in {calls} answers: nothing to compare")
    return time.monotonic() - began, max(1, calls - 1)


def one_by_one(target: Target, text: str, parts: int, penalties: dict[str, float]) -> float:
    """Seconds of the same answers from the peer, each asked for when the one before it is there."""
    began, again = time.monotonic(), False
    size = len(text.split())
    found = chunks(text, size, size // parts + 100, lambda texts: [len(one.split()) for one in texts]) \
        if parts > 1 else [text]
    while True:
        asking = Asking(Work(type="summary", text=text, hint="text"), NOBODY, "\n\n".join(found), again)
        found = [written(target, ask, penalties) for ask in asking.asks(found if not again else [asking.text], ANSWER)]
        if len(found) == 1:
            return time.monotonic() - began
        again = True


def written(target: Target, ask: Any, penalties: dict[str, float]) -> str:
    messages = [{"role": "system", "content": ask.system}, {"role": "user", "content": ask.messages[-1].content}]
    body = {"messages": messages, "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True, "cache_prompt": True,
            **penalties}
    reply = asked(target, "POST", "/v1/chat/completions", body)
    if reply["usage"]["completion_tokens"] != ANSWER:
        raise RuntimeError(f"{target.name} wrote {reply['usage']}: nothing to compare")
    return str(reply["choices"][0]["message"]["content"])


def measured(ours: Ours, other: Target, size: int, rounds: int, penalties: dict[str, float]) -> Row:
    """In turns, each after both came to rest; every text is a new one."""
    penalise(ours, penalties)
    seconds: dict[str, list[float]] = {"ours": [], "llama.cpp": []}
    parts = 1
    for number in range(rounds):
        text = shapes.words(size // PER_TOKEN, size + 10 * number + bool(penalties)).strip()
        for target in (ours, other):
            for one in (ours, other):
                one.settle()
            if target is ours:
                took, parts = by_job(ours, text)
            else:
                took = one_by_one(other, text, parts, penalties)
            seconds[target.name].append(took)
    what = f"{size:,} characters in {parts} parts, {'no word twice' if penalties else 'as it comes'}"
    return Row(BENCH, what, "s", median(seconds["ours"]), median(seconds["llama.cpp"]), less=True, at=size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PATH", help="a llama-server (default: the one on PATH, else xllamacpp's)")
    parser.add_argument("--model", choices=shapes.SHAPES, default="0.5b", help="default %(default)s")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="characters (default: 8000 16000)")
    parser.add_argument("--kind", choices=KINDS, default="both", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both (all cores)")
    parser.add_argument("--models", type=Path, default=shapes.default_folder(), help="default %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures here")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # so that the servers are stopped, whatever ends this
    binary = peer.find(arguments.peer)
    report: Report = load(arguments.json)
    report.about = {"processor": processor(), "threads": str(arguments.threads), "peer": peer.described(binary)}
    print("\n".join(f"{name}: {value}" for name, value in report.about.items()), flush=True)
    setup = Setup(shapes.model_file(arguments.model, arguments.models), SLOTS, N_CTX, arguments.threads, template=None)
    with pair(setup, binary) as (ours, other):
        assert isinstance(ours, Ours)
        by_job(ours, shapes.words(100, 1).strip())              # a first request is nobody's speed
        one_by_one(other, shapes.words(100, 1).strip(), 1, {})
        report.replace(BENCH, [
            measured(ours, other, size, arguments.rounds, penalties)
            for size in arguments.sizes for penalties in KINDS[arguments.kind]])
    if arguments.json:
        report.save(arguments.json)
    print(f"\n{table(report.rows)}\n\nratio: how many times as fast ours is")


if __name__ == "__main__":
    main()
