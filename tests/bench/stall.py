"""What a long prompt costs the answers that stream beside it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from tests.bench.rows import Row
from tests.bench.shapes import words
from tests.bench.speed import Options, in_turns
from tests.bench.target import Ask, Target, pair

STREAMS, PROMPT = 2, 4000       # answers that go on, tokens of the prompt that comes in
CONTEXT = 8192                  # tokens of a slot
QUIET = 60                      # gaps of each answer that say what is quiet


@dataclass
class Stall:
    """Gaps between two pieces of an answer, as multiples of its quiet gap, and seconds of the prompt's first token."""

    typical: float
    p95: float
    longest: float
    first: float


def long_prompt(options: Options) -> list[Row]:
    """Gaps between the pieces of 2 answers while a prompt of 4,000 tokens comes in, as multiples of the quiet gap."""
    with pair(options.setup("135m", 4, CONTEXT), options.peer) as targets:
        found = in_turns(targets, min(options.rounds, 2), stall)
    ours, peer = found["ours"], found["llama.cpp"]

    def row(what: str, unit: str, name: str) -> Row:
        return Row("long-prompt", what, unit, median(getattr(one, name) for one in ours),
                   median(getattr(one, name) for one in peer), less=True)

    return [row("gap, median", "x quiet", "typical"), row("gap, 95 %", "x quiet", "p95"),
            row("gap, longest", "x quiet", "longest"), row("the prompt's first token", "s", "first")]


def stall(target: Target, number: int) -> Stall:
    """Start the answers, let them settle, send the prompt, and end the answers when its first token is there."""
    stop, heard, failed = threading.Event(), [[] for _ in range(STREAMS)], []   # type: ignore[var-annotated]

    def listen(index: int) -> None:
        try:
            ask = Ask(words(64, number * 10 + index), CONTEXT - 100, stream=True)
            target.ask(ask, stop, heard[index].append)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=listen, args=(index,)) for index in range(STREAMS)]
    for thread in threads:
        thread.start()
    try:
        while min(map(len, heard)) < QUIET and not failed:
            time.sleep(0.01)
        began = time.monotonic()
        first = target.ask(Ask(words(PROMPT, number + 555), 1, stream=True)).first if not failed else 0.0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    return _stall(heard, began, first)


def _stall(heard: list[list[float]], began: float, first: float) -> Stall:
    quiet, beside = [], []
    for times in heard:
        gaps = [(a, b) for a, b in pairwise(times)]
        usual = median(b - a for a, b in gaps[QUIET // 2:] if b < began)
        quiet.append(usual)
        beside += [(b - a) / usual for a, b in gaps if b > began and a < began + first]
    beside.sort()
    return Stall(median(beside), beside[int(len(beside) * 0.95)], beside[-1], first)
